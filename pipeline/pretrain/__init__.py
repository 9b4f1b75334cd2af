"""The annex (torch) that learns from a published version; sees it through store.reader."""

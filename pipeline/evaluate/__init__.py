"""The annex (torch) that asks what was learned: features, probes, baselines, report."""

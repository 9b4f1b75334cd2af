"""Product folders on disk as items."""

"""Earth Engine: its images as items, and their pixels."""

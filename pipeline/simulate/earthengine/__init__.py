"""The archive as Earth Engine would serve it."""

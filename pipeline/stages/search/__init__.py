"""Search: what to ask catalogues, and what their answers mean."""

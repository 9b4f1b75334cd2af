"""The truth: ground, sky and what they look like, as functions of place and time."""

"""Backbones, and what may stand before them."""

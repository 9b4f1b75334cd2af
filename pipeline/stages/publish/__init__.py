"""Publish: what a version says of its patches."""

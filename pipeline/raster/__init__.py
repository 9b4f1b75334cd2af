"""The workbench: arithmetic on lattices and pixels; no network, no decisions."""

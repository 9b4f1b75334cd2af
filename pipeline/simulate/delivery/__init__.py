"""What providers make of the truth: orbits, scenes, files, items."""

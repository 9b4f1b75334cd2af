"""One self-supervised method a file, its paper cited."""

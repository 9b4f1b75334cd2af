"""`python -m pipeline` is `terrashard`, for launchers that want a module."""

from pipeline.cli import main

main()

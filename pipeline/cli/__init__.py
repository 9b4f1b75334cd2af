"""The front door: one command per stage, and no decisions.

Heavy imports happen inside the commands, so that `--help` answers at once.
"""

from pipeline.cli import stages, recipes, dataset, archive  # isort: skip - the order of --help
from pipeline.cli.app import app
from pipeline.cli.frame import main

__all__ = ["app", "archive", "dataset", "main", "recipes", "stages"]

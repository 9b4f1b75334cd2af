"""Around a recipe: check it, start from one, see what it can name."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli.app import app
from pipeline.cli.options import RecipeArg


@app.command(epilog="Example: terrashard check my-recipe.toml")
def check(
    recipe: RecipeArg,
    stages: Annotated[
        bool, typer.Option("--stages", help="Print only the stages, in order.")
    ] = False,
) -> None:
    """Validate a recipe and print it resolved, defaults included."""
    from pipeline.recipe import load_recipe
    from pipeline.run.check import check_recipe, resolved

    loaded = load_recipe(recipe)
    check_recipe(loaded)
    typer.echo(" ".join(loaded.stages()) if stages else resolved(loaded))


@app.command(epilog="Example: terrashard init demo my-recipe.toml")
def init(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A built-in recipe (see `terrashard recipes`).")
    ],
    path: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="File to write. [default: <name>.toml]")
    ] = None,
) -> None:
    """Copy a built-in recipe to start from; never overwrites."""
    from pipeline.run.check import copy_recipe

    typer.echo(f"wrote {copy_recipe(name, path)}")


@app.command(epilog="Example: terrashard recipes")
def recipes() -> None:
    """List the built-in recipes."""
    from pipeline.recipe import load_recipe, recipe_names

    for name in recipe_names():
        typer.echo(f"{name:<24} {load_recipe(name).recipe.description}")


@app.command(epilog="Example: terrashard products sentinel-2-l2a")
def products(
    product: Annotated[
        str | None, typer.Argument(metavar="PRODUCT", help="Show one product's bands.")
    ] = None,
) -> None:
    """List the products, or show one: bands, mask rules, providers."""
    from pipeline.run.check import describe_product, list_products

    typer.echo(describe_product(product) if product else list_products())

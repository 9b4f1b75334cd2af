"""Read and check product files and the lattices they name."""

from __future__ import annotations

import csv
import re
import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from pipeline.errors import RecipeError
from pipeline.products.explain import explain, meant, toml_trouble
from pipeline.products.model import Lattice, Product

#: A number as catalogues write it, small enough to be exact.
_NUMBER = re.compile(r"-?\d{1,15}(\.\d{1,15})?")
#: Characters of a fact that are kept.
_LONGEST_FACT = 100


def fact_value(stated: object) -> int | float | str | None:
    """Return a fact as it is kept and compared, however a catalogue writes it; None if it is none.

    Numbers are numbers, though many come as text (`"2"`), and whole ones are int; other text is in
    lower case (`DESCENDING`, `descending`), and so are true and false.
    """
    if not isinstance(stated, bool | int | float | str):
        return None
    text = str(stated).strip().casefold()
    if isinstance(stated, bool) or not _NUMBER.fullmatch(text):
        return text[:_LONGEST_FACT] or None
    number = float(text)
    return int(number) if number.is_integer() else number


def product_ids() -> tuple[str, ...]:
    """Return the ids of the built-in products, sorted."""
    folder = files("pipeline.products")
    names = (entry.name for entry in folder.iterdir() if entry.name.endswith(".toml"))
    return tuple(sorted(n[:-5] for n in names if n != "lattices.toml"))


def load_product(reference: str, *, beside: Path | None = None) -> Product:
    """Read a product by built-in id, or by the path of a TOML file of the user's own.

    Parameters
    ----------
    reference : str
        `sentinel-2-l2a`, or a path ending in `.toml`, relative to `beside`.
    beside : Path or None
        Folder of the recipe that names it; None: the current folder.

    Raises
    ------
    RecipeError
        No such product, or its file does not fit the model; says which key and what is allowed.
    """
    if reference.endswith(".toml"):
        path = Path(reference) if beside is None else beside / reference
        if not path.is_file():
            raise RecipeError(f"product file {path} does not exist.")
        return _parse(path.read_text(), name=str(path), folder=path.parent)
    return _built_in(reference)


@cache
def _built_in(reference: str) -> Product:
    if reference not in product_ids():
        raise RecipeError(
            f"there is no product {reference!r}; built in are: {', '.join(product_ids())}"
            f"{meant(reference, product_ids())}. "
            "A product of your own is named by the path of its TOML file."
        )
    folder = Path(str(files("pipeline.products")))
    path = folder / f"{reference}.toml"
    return _parse(path.read_text(), name=f"{reference}.toml", folder=folder)


def _parse(text: str, *, name: str, folder: Path) -> Product:
    try:
        values: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{name} is not valid TOML: {toml_trouble(error)}.") from error
    tables = values.get("band_tables", [])
    for table in (values, *tables) if isinstance(tables, list) else (values,):
        if isinstance(table, dict) and "bands_csv" in table:
            table["bands"] = _rows(folder / table["bands_csv"])
    if "responses_csv" in values:
        known = {band["name"] for band in values.get("bands", ()) if "name" in band}
        rows = _rows(folder / values["responses_csv"])
        values["responses"] = [row for row in rows if row.get("band") in known]
    try:
        product = Product.model_validate(_liken(values))
    except ValidationError as error:
        raise RecipeError(explain(error, name, model=Product)) from error
    if product.lattice is not None:
        lattice(product.lattice)
    return product


def _rows(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV without its comments; empty fields are left out."""
    with path.open(newline="") as lines:
        rows = csv.DictReader(line for line in lines if not line.startswith("#"))
        return [{key: value for key, value in row.items() if value != ""} for row in rows]


def _liken(values: dict[str, Any]) -> dict[str, Any]:
    """Give each provider that is `like` another one the keys it leaves out."""
    providers = values.get("providers", {})
    if not isinstance(providers, dict):
        return values
    likened = {
        name: {**providers.get(own.get("like"), {}), **own} if isinstance(own, dict) else own
        for name, own in providers.items()
    }
    return {**values, "providers": likened}


@cache
def lattices() -> dict[str, Lattice]:
    """Return every known lattice by id."""
    text = files("pipeline.products").joinpath("lattices.toml").read_text()
    return {key: Lattice(id=key, **value) for key, value in tomllib.loads(text).items()}


def lattice(name: str | None) -> Lattice:
    """Return the lattice of that name, or raise `RecipeError` naming the known ones.

    None is what a product has that lies on no lattice.
    """
    if name is None:
        raise RecipeError("a product that is warped onto cells has no lattice of its own.")
    try:
        return lattices()[name]
    except KeyError:
        known = ", ".join(lattices())
        raise RecipeError(
            f"there is no lattice {name!r}; known are: {known}{meant(name, lattices())}."
        ) from None

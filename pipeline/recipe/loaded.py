"""A recipe with its product files: read, checked against them, hashed, and put in order."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, time
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from pipeline.errors import RecipeError
from pipeline.products.catalogue import lattice, load_product
from pipeline.products.explain import explain, meant, toml_trouble
from pipeline.products.model import Lattice, Product
from pipeline.recipe.fields import ProductWish, Recipe, Scenes

#: What a product file says besides what its pixels are. Who serves them where may change: a plan
#: holds the addresses that were found.
_NOT_PIXELS = {
    "title",
    "sources",
    "colours",
    "providers",
    "bands_csv",
    "terms",
    "attribution",
}


class LoadedRecipe:
    """A recipe with its product files and folder: what the code works with.

    Attributes
    ----------
    recipe : Recipe
    products : dict of str to Product
        By the id used in the recipe's own tables, `Product.id` (not a path), in recipe order.
    wishes : dict of str to ProductWish
        By the same keys.
    leader : dict of str to str
        By the same keys: the product that it follows, or itself.
    compared : dict of str to str
        Products with `compare_with`: the spectrometer they are compared with.
    folder : Path
        Where relative paths of the recipe start.
    identity : str
        sha256 (hex) of the identity fields, those of the product files among them: frozen for a
        root.
    """

    def __init__(
        self, recipe: Recipe, folder: Path, *, facts: dict[str, Product] | None = None
    ) -> None:
        self.recipe = recipe
        self.folder = folder
        self.products: dict[str, Product] = {}
        self.wishes: dict[str, ProductWish] = {}
        rename: dict[str, str] = {}
        for wish in recipe.product:
            with _named(f"recipe {recipe.name}: `product.id`"):
                product = facts[wish.id] if facts else load_product(wish.id, beside=folder)
            rename[wish.id] = product.id
            self.products[product.id] = product
            self.wishes[product.id] = wish
        self.leader: dict[str, str] = {
            key: rename[wish.follows] if wish.follows else key for key, wish in self.wishes.items()
        }
        self.compared: dict[str, str] = {
            key: rename[wish.compare_with]
            for key, wish in self.wishes.items()
            if wish.compare_with is not None
        }
        with _named(f"recipe {recipe.name}: `cell.lattice`"):
            self.lattice: Lattice = lattice(recipe.cell.lattice)
        self.identity = _identity(self.frozen())
        for key, wish in self.wishes.items():
            _check_required(recipe.name, self.products[key], wish)
        _check_training(recipe, self.products)
        tiled = recipe.sample.product if isinstance(recipe.sample, Scenes) else None
        if tiled is not None and self.products[rename[tiled]].warp is not None:
            raise RecipeError(
                f"recipe {self.name}: `sample.product` is {tiled!r}, whose pixels lie on no "
                "lattice of cells; tile the scenes of another product."
            )
        # Asked for every patch, and hundreds of bands are looked at: worked out once, which also
        # refuses what cannot be.
        self._bands = {key: self._wanted_bands(key) for key in self.products}
        self._pixel_m = {key: self._stored_pixel_m(key) for key in self.products}
        self._size_px = {key: self._patch_size_px(key) for key in self.products}

    def dump(self) -> dict[str, Any]:
        """Return all of it as JSON values, so that a plan needs no other file (`restore`)."""
        return {
            "recipe": self.recipe.model_dump(mode="json"),
            "folder": str(self.folder),
            "products": {
                wish.id: product.model_dump(mode="json", exclude={"bands_csv"})
                for wish, product in zip(self.recipe.product, self.products.values(), strict=True)
            },
        }

    @classmethod
    def restore(cls, values: dict[str, Any]) -> LoadedRecipe:
        """Rebuild what `dump` returned; the product files themselves are not read again."""
        facts = {key: Product.model_validate(value) for key, value in values["products"].items()}
        recipe = Recipe.model_validate(values["recipe"])
        return cls(recipe, Path(values["folder"]), facts=facts)

    @property
    def name(self) -> str:
        return self.recipe.name

    def frozen(self) -> dict[str, Any]:
        """Return the identity fields as JSON values: what may not change in a root."""
        return _frozen(self.recipe, self.products)

    @property
    def cell_m(self) -> float:
        """Edge of a cell in metres."""
        return self.recipe.cell.size_px * self.lattice.pixel_m

    def bands(self, product: str) -> tuple[str, ...]:
        """Return the names of the stored bands of a product, in storage order."""
        return self._bands[product]

    def choice(self, product: str) -> str:
        """Return what ranks a product's candidates; yearly maps go by the nearest year."""
        yearly = self.products[product].temporal == "yearly"
        return "nearest" if yearly else self.wishes[product].choice

    def pixel_m(self, product: str) -> float:
        """Return the stored pixel size of a product in metres."""
        return self._pixel_m[product]

    def size_px(self, product: str) -> int:
        """Return the edge of a product's patches in its stored pixels."""
        return self._size_px[product]

    def _wanted_bands(self, product: str) -> tuple[str, ...]:
        facts, wish = self.products[product], self.wishes[product]
        if wish.bands == "all":
            return tuple(band.name for band in facts.bands)
        if wish.bands == "default":
            return tuple(band.name for band in facts.bands if band.default)
        return tuple(facts.band(name).name for name in wish.bands)

    def _stored_pixel_m(self, product: str) -> float:
        facts, wish = self.products[product], self.wishes[product]
        if wish.pixel_m is not None:
            return wish.pixel_m
        finest = min(facts.band(name).pixel_m for name in self.bands(product))
        # What is warped comes on the pixels of the cells: one label for each pixel of the images.
        return self.lattice.pixel_m if facts.lattice in (self.lattice.id, None) else finest

    def _patch_size_px(self, product: str) -> int:
        """Return the edge of a patch, or raise `RecipeError`: the cell is not a whole number of
        the stored pixels, or of a coarser wanted band's, and no resampling is allowed."""
        wish, facts = self.wishes[product], self.products[product]
        pixel_m = self.pixel_m(product)
        native = [facts.band(name).pixel_m for name in self.bands(product)]
        coarsest = max(native) if facts.warp is None else pixel_m
        for step in (pixel_m, max(pixel_m, coarsest)):
            if self.cell_m % step and wish.resampling is None:
                raise RecipeError(
                    f"recipe {self.name}: a cell of {self.cell_m:g} m is not a whole number of the "
                    f"{step:g} m pixels of {product}; choose `cell.size_px` so that it is, leave "
                    "that band out, or name a `resampling` for the product."
                )
        for band in (facts.band(name) for name in self.bands(product)):
            if band.inset_m and (pixel_m < 2 * band.pixel_m or wish.resampling != "nearest"):
                raise RecipeError(
                    f"recipe {self.name}: band {band.name} of {product} has pixels of "
                    f"{band.pixel_m:g} m that share centres with the others, not corners; it needs "
                    f'`resampling = "nearest"` and a `pixel_m` of {2 * band.pixel_m:g} or more.'
                )
        return round(self.cell_m / pixel_m)

    def path(self, relative: str) -> Path:
        """Return a path of the recipe, relative to its folder."""
        return (self.folder / relative).resolve()

    def leaders_first(self) -> tuple[str, ...]:
        """Return the products, each after the one that it follows."""
        return tuple(sorted(self.products, key=lambda product: self.leader[product] != product))

    def stages(self) -> tuple[str, ...]:
        """Return the stages in the order in which this recipe runs them (the only place to know).

        With the strategy `scenes` what exists is searched before cells are cut from it.
        """
        where = (
            ("search", "sample")
            if self.recipe.sample.strategy == "scenes"
            else (
                "sample",
                "search",
            )
        )
        trained = ("pretrain",) if self.recipe.pretrain else ()
        tested = ("evaluate",) if self.recipe.evaluate else ()
        return (*where, "plan", "extract", "publish", *trained, *tested)


def load_recipe(reference: str | Path) -> LoadedRecipe:
    """Read a recipe from a TOML file, or a built-in one by name.

    Raises
    ------
    RecipeError
        No such recipe, or a key is missing, unknown or wrong; one paragraph naming each.
    """
    path = Path(reference)
    if not path.is_file():
        built_in = files("pipeline.recipes").joinpath(f"{reference}.toml")
        if not built_in.is_file() and path.is_dir():
            raise RecipeError(f"{reference} is a folder; name the recipe file in it.")
        if not built_in.is_file():
            raise RecipeError(
                f"there is no recipe file {reference}, and no built-in recipe of that name; "
                f"built in are: {', '.join(recipe_names())}."
            )
        path = Path(str(built_in))
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {toml_trouble(error)}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text: {error}.") from error
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain(error, str(path), values, Recipe)) from error
    return LoadedRecipe(recipe, path.resolve().parent)


def recipe_names() -> tuple[str, ...]:
    """Return the names of the built-in recipes, sorted."""
    names = (entry.name for entry in files("pipeline.recipes").iterdir())
    return tuple(sorted(name[:-5] for name in names if name.endswith(".toml")))


@contextmanager
def _named(key: str) -> Iterator[None]:
    """Say of which key a value is that does not exist."""
    try:
        yield
    except RecipeError as error:
        raise RecipeError(f"{key}: {error}") from None


def _check_required(name: str, product: Product, wish: ProductWish) -> None:
    """Refuse a demand on what a provider does not state: none of its scenes would meet it."""
    for provider in wish.providers:
        if provider not in product.providers:
            continue  # said where it is asked
        known = product.providers[provider].facts
        for word in wish.require:
            if word in known:
                continue
            raise RecipeError(
                f"recipe {name}: `require` of product {product.id} names {word!r}, which is none "
                f"of the facts that provider {provider!r} states{meant(word, known)}: "
                f"{', '.join(known) or '(there is none)'}."
            )


def _check_training(recipe: Recipe, products: dict[str, Product]) -> None:
    """Refuse training on what the recipe does not hold, before anything is downloaded."""
    for key, product, kind in (
        ("pretrain.product", recipe.pretrain and recipe.pretrain.product, "image"),
        ("evaluate.labels", recipe.evaluate and recipe.evaluate.labels, "labels"),
    ):
        fit = [name for name, facts in products.items() if facts.kind == kind]
        if product is not None and product not in fit:
            raise RecipeError(
                f"recipe {recipe.name}: `{key}` is {product!r}; allowed are its products of kind "
                f"`{kind}`: {', '.join(fit) or '(there is none)'}."
            )


def _frozen(recipe: Recipe, products: dict[str, Product]) -> dict[str, Any]:
    values = _without_extent(recipe)
    for key in ("description", "pretrain", "evaluate"):
        values.pop(key, None)
    for wish in values["product"]:
        if not wish["require"]:
            del wish["require"]  # roots made before it existed are still the same data set
    values["products"] = {
        key: product.model_dump(mode="json", exclude=_NOT_PIXELS)
        for key, product in products.items()
    }
    return values


def _identity(frozen: dict[str, Any]) -> str:
    text = json.dumps(frozen, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _without_extent(model: BaseModel) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for key, field in type(model).model_fields.items():
        extra = field.json_schema_extra
        if isinstance(extra, dict) and extra.get("extent"):
            continue
        value = getattr(model, key)
        if isinstance(value, BaseModel):
            values[key] = _without_extent(value)
        elif isinstance(value, dict):
            values[key] = {
                name: _without_extent(inner) if isinstance(inner, BaseModel) else inner
                for name, inner in value.items()
            }
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            values[key] = [_without_extent(item) for item in value]
        else:
            values[key] = value.isoformat() if isinstance(value, date) else value
    return values


def midnight(day: date) -> datetime:
    """Return the start of a day in UTC."""
    return datetime.combine(day, time(), UTC)

"""The recipe: one TOML file that describes a data set, checked, hashed, and put in order.

Fields are *identity* (what the data set is: hashed, frozen for a root) or *extent* (how much of
it: may grow, marked below). What is trained on it is neither. Defaults live here and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
import tomllib
from datetime import UTC, date, datetime, time
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.errors import RecipeError
from pipeline.products.catalogue import Lattice, Product, explain, lattice, load_product

#: Mark of a field that may grow without changing what the data set is.
EXTENT: dict[str, Any] = {"extent": True}


class _Strict(BaseModel):
    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
        validate_default=True,  # else a default 0 and a written 0.0 hash differently
    )


# --- where -----------------------------------------------------------------------------------


class _Sample(_Strict):
    count: int = Field(default=1000, ge=1, json_schema_extra=EXTENT)
    """How many locations are wanted. More of them never move the earlier ones."""


class Cities(_Sample):
    """Gaussian around populated places (SSL4EO-S12 and SSL4EO-L, in metres instead of degrees)."""

    strategy: Literal["cities"]
    largest: int = Field(default=10_000, ge=1)
    """Only the so many most populous places (GeoNames)."""
    spread_km: float = Field(default=50, gt=0)
    """Standard deviation in each direction, in kilometres on the ground."""
    choice: Literal["uniform", "population"] = "uniform"
    """Each place alike, or in proportion to its population."""


class Uniform(_Sample):
    """Equal-area on the sphere."""

    strategy: Literal["uniform"]
    land_only: bool = False
    """Keep draws on land only (a coarse land mask; coastal water passes)."""
    region: tuple[float, float, float, float] | None = None
    """west, south, east, north in degrees; west > east crosses the antimeridian."""


class Grid(_Strict):
    """Every cell of a region."""

    strategy: Literal["grid"]
    region: tuple[float, float, float, float]
    """west, south, east, north in degrees."""


class Scenes(_Strict):
    """Every cell that the found scenes cover: tile what exists (SpectralEarth)."""

    strategy: Literal["scenes"]
    product: str
    """Whose scenes are tiled."""
    region: tuple[float, float, float, float] | None = None
    """west, south, east, north in degrees of the search; None: the world (or the whole folder)."""
    min_cover_fraction: float = Field(default=1.0, gt=0, le=1)
    """Least share of a cell that one datatake's scenes must cover."""


class Points(_Strict):
    """The cells that hold a user's points."""

    strategy: Literal["points"]
    path: str
    """GeoJSON, GeoParquet or CSV (columns lon, lat), relative to the recipe."""


Sample = Annotated[Cities | Uniform | Grid | Scenes | Points, Field(discriminator="strategy")]


class Cell(_Strict):
    """The unit of ground: a tile of the fixed tiling of a lattice."""

    lattice: str
    """Lattice id (`terrashard products` lists them)."""
    size_px: int = Field(ge=1, le=8192)
    """Edge in pixels of that lattice."""
    snap: Literal["lattice", "scene"] = "lattice"
    """`lattice`: tiles of the fixed tiling, so revisits coincide. `scene`: pixel-aligned cells
    centred on the draws, or tiling each scene from its own corner."""


# --- when ------------------------------------------------------------------------------------


class Window(_Strict):
    name: str = Field(pattern=r"^[A-Za-z0-9_-]+$")
    start: date
    """First day."""
    end: date
    """Day after the last."""

    @model_validator(mode="after")
    def _forward(self) -> Window:
        _check_order(self.start, self.end)
        return self


class Windows(_Strict):
    """Dated windows, one slot each."""

    kind: Literal["windows"]
    windows: tuple[Window, ...] = Field(min_length=1, json_schema_extra=EXTENT)

    @model_validator(mode="after")
    def _distinct(self) -> Windows:
        names = [window.name for window in self.windows]
        if len(set(names)) < len(names):
            raise ValueError(f"every window needs a name of its own (found {', '.join(names)})")
        return self


class _Period(_Strict):
    start: date = Field(json_schema_extra=EXTENT)
    """First day of the period."""
    end: date = Field(json_schema_extra=EXTENT)
    """Day after the last."""

    @model_validator(mode="after")
    def _forward(self) -> Self:
        _check_order(self.start, self.end)
        return self


def _check_order(start: date, end: date) -> None:
    if start >= end:
        raise ValueError(f"`start` {start} must be before `end` {end}, the day after the last")


class Seasons(_Period):
    """Meteorological seasons (DJF, MAM, JJA, SON) inside the period, one slot each."""

    kind: Literal["seasons"]


class Months(_Period):
    """Calendar months inside the period, one slot each."""

    kind: Literal["months"]


class All(_Period):
    """Every acquisition in the period is a slot of its own."""

    kind: Literal["all"]


Slots = Annotated[Windows | Seasons | Months | All, Field(discriminator="kind")]


# --- what ------------------------------------------------------------------------------------

CloudCode = Literal["thin-cloud", "cloud", "cloud-shadow", "snow"]


class ProductWish(_Strict):
    """One product of the data set: where it comes from and when a patch of it is good enough."""

    id: str
    """Built-in product, or the path of a product file of your own, relative to the recipe."""
    provider: str = "local"
    """An entry of providers.toml (`terrashard products` lists who serves what)."""
    url: str | None = Field(default=None, json_schema_extra=EXTENT)
    """STAC API or static catalogue to use in place of the provider's own URL."""
    path: str | None = Field(default=None, json_schema_extra=EXTENT)
    """Folder of product folders for `provider = "local"`, relative to the recipe."""
    bands: tuple[str, ...] | Literal["default", "all"] = "default"
    """Band names, or the product file's own choice, or every band."""
    pixel_m: float | None = None
    """Stored pixel size in metres; None: the cell lattice's if it is the product's too, else the
    finest wanted band's."""
    resampling: Literal["nearest", "average"] | None = None
    """Allowed when a band's pixels do not fit the stored ones exactly; None: refuse."""
    choice: Literal["least-cloudy", "nearest", "newest"] = "least-cloudy"
    """Order of a slot's candidates; `nearest` is to the slot's middle, or to the leader."""
    candidates: int = Field(default=3, ge=1, le=64)
    """How many ranked candidates a slot keeps for fall-back."""
    max_cloud_percent: float = Field(default=100, ge=0, le=100)
    """Scenes above this catalogue value are not candidates (unknown counts as 100)."""
    min_sun_elevation_deg: float = 0
    """Scenes below this are not candidates (night scenes are never cloud-free)."""
    max_cloud_fraction: float = Field(default=1.0, ge=0, le=1)
    """Largest share of seen pixels of a patch that may be cloudy."""
    cloudy: tuple[CloudCode, ...] = ("thin-cloud", "cloud", "cloud-shadow")
    """Which codes of the common legend count as cloudy."""
    min_valid_fraction: float = Field(default=1.0, ge=0, le=1)
    """Least share of a patch's pixels that must have been seen."""
    allow_unmasked: bool = False
    """Whether a scene without its quality layers may be used (written with mask 8, `valid`)."""
    contained: bool = True
    """Whether one datatake's footprints must contain the whole cell."""
    follows: str | None = None
    """Product whose acquisition this one accompanies: they stand and fall together."""
    within_days: float = Field(default=0, ge=0)
    """Largest distance in time to the leader, in days (0: the same acquisition, by datatake)."""

    @model_validator(mode="after")
    def _sound(self) -> ProductWish:
        if self.provider == "local" and self.path is None:
            raise ValueError("needs `path`, the folder of product folders, or another `provider`")
        if self.follows is None and self.within_days:
            raise ValueError("has `within_days`, which belongs to a product that `follows` another")
        if not self.bands:
            raise ValueError('`bands` is empty: name some, or write "default" or "all"')
        if self.pixel_m is not None and self.pixel_m <= 0:
            raise ValueError(f"`pixel_m` is {self.pixel_m:g}; a pixel has more than 0 metres")
        return self


class Shards(_Strict):
    """How patches are grouped and packed."""

    shard_mb: float = Field(default=512, gt=0)
    """Uncompressed size of a shard, in 10^6 bytes."""
    compression_level: int = Field(default=1, ge=0, le=9)
    """Blosc-zstd level (bit-shuffled); 1 takes half the time of 3 for a few percent more bytes."""


class Split(_Strict):
    """Spatial blocks, dealt to the parts by a hash of their position."""

    block_km: float = Field(default=50, gt=0)
    """Edge of a block in kilometres; a block never straddles two parts."""
    train: float = Field(default=0.8, ge=0, le=1)
    val: float = Field(default=0.1, ge=0, le=1)
    test: float = Field(default=0.1, ge=0, le=1)

    @model_validator(mode="after")
    def _whole(self) -> Split:
        if abs(self.train + self.val + self.test - 1) > 1e-9:
            raise ValueError("`train`, `val` and `test` must add up to 1")
        return self


# --- and then --------------------------------------------------------------------------------


class Pretrain(_Strict):
    """One pretraining run on a published version."""

    method: Literal["moco", "mae", "barlow", "dino"] = "moco"
    backbone: str = "resnet18"
    """A timm ResNet or ViT: resnet18, resnet34, resnet50, resnet101, vit_tiny, vit_small, vit_base,
    vit_large. With `spec_` before it (spec_resnet50, spec_vit_small), behind SpectralEarth's
    spectral adapter, for 75 bands or more."""
    product: str | None = None
    """Whose patches are learned from; None: the recipe's first image product."""
    steps: int = Field(default=1000, ge=1)
    batch_size: int = Field(default=64, ge=2)
    crop_px: int | None = None
    """Edge of the training crops; None: the whole patch."""
    patch_px: int = Field(default=4, ge=1)
    """Token edge of a ViT."""
    learning_rate: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    warmup_steps: int = Field(default=0, ge=0)
    momentum: float = Field(default=0.999, ge=0, lt=1)
    """MoCo: of the key encoder (He et al. 2020)."""
    temperature: float = Field(default=0.2, gt=0)
    """MoCo v2: of the logits (Chen et al. 2020)."""
    queue: int = Field(default=4096, ge=2)
    """MoCo: keys remembered."""
    mask_fraction: float = Field(default=0.75, gt=0, lt=1)
    """MAE: share of hidden tokens (He et al. 2022); SpectralEarth used 0.9."""
    projector_width: int = Field(default=2048, ge=2)
    """Barlow Twins: of each of the projector's three layers; 8192 in the paper (Zbontar et al.
    2021), 2048 for BigEarthNet and So2Sat (Wang et al. 2022, arXiv 2206.13188)."""
    off_diagonal: float = Field(default=0.0051, gt=0)
    """Barlow Twins: lambda, the weight of correlations between dimensions (Zbontar et al. 2021)."""
    prototypes: int = Field(default=4096, ge=2)
    """DINO: what it tells apart; 65536 in the paper (Caron et al. 2021) and SSL4EO-S12, 128 in
    SpectralEarth."""
    teacher_momentum: float = Field(default=0.996, ge=0, le=1)
    """DINO: of the teacher at first; it rises to 1 on a cosine over all steps (Caron et al. 2021).
    A run of a few hundred steps needs less, or its teacher hardly moves."""
    student_temperature: float = Field(default=0.1, gt=0)
    """DINO: of the student's logits (Caron et al. 2021)."""
    teacher_temperature: float = Field(default=0.04, gt=0)
    """DINO: of the teacher's logits, after its warm-up (the paper's code and SSL4EO-S12)."""
    teacher_temperature_start: float = Field(default=0.04, gt=0)
    """DINO: of the teacher's logits at first (Caron et al. 2021)."""
    teacher_warmup_steps: int = Field(default=0, ge=0)
    """DINO: steps from the teacher's first temperature to its last (0 as in SSL4EO-S12)."""
    centre_momentum: float = Field(default=0.9, ge=0, lt=1)
    """DINO: of the centre of the teacher's logits (Caron et al. 2021)."""
    frozen_fraction: float = Field(default=0.01, ge=0, le=1)
    """DINO: share of the run in which the prototypes stand still; 1 epoch of 100 in SSL4EO-S12."""
    local_crops: int = Field(default=8, ge=0)
    """DINO: small crops beside the two large ones (SSL4EO-S12)."""
    local_px: int | None = Field(default=None, ge=2)
    """DINO: edge of the small crops; None: 3/7 of the large ones' (96 of 224), in whole tokens."""
    seed: int = 0
    checkpoint_every: int = Field(default=500, ge=1)
    """Steps between checkpoints."""
    transductive: bool = False
    """Learn from all splits, not from `train` alone; every report then says so."""
    precision: Literal["fp32", "bf16"] = "fp32"
    threads: int = Field(default=2, ge=1)
    """Decoding threads of the loader."""


class Evaluate(_Strict):
    """Probes of frozen features against labels, beside baselines on the same split."""

    labels: str
    """Label product of the same recipe."""
    window_px: int | None = None
    """Edge of the classified windows in pixels of the image product; None: the whole patch."""
    min_label_fraction: float = Field(default=0.5, ge=0, le=1)
    """Least share of a window that its majority label must cover."""
    knn: int = Field(default=5, ge=1)
    """Neighbours of the kNN probe (cosine, torchgeo-bench uses 5)."""
    seed: int = 0


class Recipe(_Strict):
    """A data set, and what is trained on it."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """Lower-case name, the default folder of the data set."""
    description: str = ""
    seed: int = Field(default=0, ge=0)
    """Seed of sampling and splits."""
    sample: Sample
    cell: Cell
    slots: Slots
    product: tuple[ProductWish, ...] = Field(min_length=1)
    shards: Shards = Shards()
    split: Split = Split()
    pretrain: Pretrain | None = None
    evaluate: Evaluate | None = None

    @model_validator(mode="after")
    def _sound(self) -> Recipe:
        ids = [wish.id for wish in self.product]
        for wish in self.product:
            if ids.count(wish.id) > 1:
                raise ValueError(f"product {wish.id!r} is listed twice")
            leader = next((w for w in self.product if w.id == wish.follows), None)
            if wish.follows is not None and (leader is None or leader.follows or leader is wish):
                leaders = ", ".join(
                    w.id for w in self.product if w.follows is None and w is not wish
                )
                raise ValueError(
                    f"{wish.id!r} follows {wish.follows!r}, which is not one of: "
                    f"{leaders or '(there is no other)'}"
                )
        if isinstance(self.sample, Scenes) and self.sample.product not in ids:
            raise ValueError(
                f"`sample.product` {self.sample.product!r} is not one of: {', '.join(ids)}"
            )
        return self


class LoadedRecipe:
    """A recipe with its product files and folder: what the code works with.

    Attributes
    ----------
    recipe : Recipe
    products : dict of str to Product
        By the id used in the recipe's own tables, `Product.id` (not a path), in recipe order.
    wishes : dict of str to ProductWish
        By the same keys.
    folder : Path
        Where relative paths of the recipe start.
    identity : str
        sha256 (hex) of the identity fields and of the product files: frozen for a root.
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
            product = facts[wish.id] if facts else load_product(wish.id, beside=folder)
            rename[wish.id] = product.id
            self.products[product.id] = product
            self.wishes[product.id] = wish
        self.leader: dict[str, str] = {
            key: rename[wish.follows] if wish.follows else key for key, wish in self.wishes.items()
        }
        self.lattice: Lattice = lattice(recipe.cell.lattice)
        self.identity = _identity(recipe, self.products)
        _check_training(recipe, self.products)
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
        """Return the recipe's identity fields as JSON values: what may not change in a root."""
        return _frozen(self.recipe)

    @property
    def cell_m(self) -> float:
        """Edge of a cell in metres."""
        return self.recipe.cell.size_px * self.lattice.pixel_m

    def bands(self, product: str) -> tuple[str, ...]:
        """Return the names of the stored bands of a product, in storage order."""
        return self._bands[product]

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
        return self.lattice.pixel_m if facts.lattice == self.lattice.id else finest

    def _patch_size_px(self, product: str) -> int:
        """Return the edge of a patch, or raise `RecipeError`: the cell is not a whole number of
        the stored pixels, or of a coarser wanted band's, and no resampling is allowed."""
        wish, facts = self.wishes[product], self.products[product]
        pixel_m = self.pixel_m(product)
        coarsest = max([pixel_m, *(facts.band(name).pixel_m for name in self.bands(product))])
        for step in (pixel_m, coarsest):
            if self.cell_m % step and wish.resampling is None:
                raise RecipeError(
                    f"recipe {self.name}: a cell of {self.cell_m:g} m is not a whole number of the "
                    f"{step:g} m pixels of {product}; choose `cell.size_px` so that it is, leave "
                    "that band out, or name a `resampling` for the product."
                )
        return round(self.cell_m / pixel_m)

    def path(self, relative: str) -> Path:
        """Return a path of the recipe, relative to its folder."""
        return (self.folder / relative).resolve()

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
        if not built_in.is_file():
            raise RecipeError(
                f"there is no recipe file {reference}, and no built-in recipe of that name; "
                f"built in are: {', '.join(recipe_names())}."
            )
        path = Path(str(built_in))
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise RecipeError(f"{path} cannot be read: {error.strerror}.") from error
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path} is not valid TOML: {error}.") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path} is not UTF-8 text: {error}.") from error
    try:
        recipe = Recipe.model_validate(values)
    except ValidationError as error:
        raise RecipeError(explain(error, str(path), values)) from error
    return LoadedRecipe(recipe, path.resolve().parent)


def recipe_names() -> tuple[str, ...]:
    """Return the names of the built-in recipes, sorted."""
    names = (entry.name for entry in files("pipeline.recipes").iterdir())
    return tuple(sorted(name[:-5] for name in names if name.endswith(".toml")))


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


def _frozen(recipe: Recipe) -> dict[str, Any]:
    values = _without_extent(recipe)
    for key in ("description", "pretrain", "evaluate"):
        values.pop(key, None)
    return values


def _identity(recipe: Recipe, products: dict[str, Product]) -> str:
    values = _frozen(recipe)
    values["products"] = {
        key: product.model_dump(mode="json", exclude={"bands_csv"})
        for key, product in products.items()
    }
    text = json.dumps(values, sort_keys=True, separators=(",", ":"))
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
        elif isinstance(value, tuple) and value and isinstance(value[0], BaseModel):
            values[key] = [_without_extent(item) for item in value]
        else:
            values[key] = value.isoformat() if isinstance(value, date) else value
    return values


def midnight(day: date) -> datetime:
    """Return the start of a day in UTC."""
    return datetime.combine(day, time(), UTC)

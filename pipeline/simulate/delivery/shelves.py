"""In whose manner a product is served, and which of its bands lie in which file."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import RecipeError
from pipeline.products.catalogue import load_product
from pipeline.products.model import Band, MaskLayer, Product, ProviderFacts
from pipeline.simulate.delivery.orbits import Scene
from pipeline.simulate.delivery.scenes import delivered_dtype, layer_dtype, offset_of

#: What an archive holds in place of a product that only Earth Engine has, and makes of it.
STANDS_FOR = {"sentinel-1-grd-corrected": "sentinel-1-rtc"}
#: Path of what no provider serves on the network.
_PLAIN = "labels"


@dataclass(frozen=True, slots=True)
class Shelf:
    """In whose manner a product is served."""

    product: Product
    provider: str
    """Whose habits, and the path of the server."""
    facts: ProviderFacts
    """Whose names."""

    @property
    def is_map(self) -> bool:
        """Whether it is a map in a projection of its own, made once for a region."""
        return self.product.lattice is None and self.product.geolocation == "grid"

    def offset(self, scene: Scene) -> int:
        """Return what must be added to a value in this provider's files to get the truth."""
        return 0 if self.offset_removed else offset_of(scene, self.product)

    @property
    def offset_removed(self) -> bool:
        """Whether the offset is not in the files; where the items say it, it is not."""
        said = "offset_applied" in self.facts.properties
        return said or self.facts.offset_applied is True


@dataclass(frozen=True, slots=True)
class File:
    """One file of a scene: bands or quality layers on one grid."""

    key: str
    pixel_m: float
    inset_m: float
    dtype: str
    members: tuple[Band | MaskLayer, ...]
    """In the order of the file's bands."""

    @property
    def per_band(self) -> bool:
        """Whether it marks defective values, band by band of the image."""
        first = self.members[0]
        return isinstance(first, MaskLayer) and first.per_band


def shelf_of(product_id: str, provider: str | None = None) -> Shelf:
    """Return how a product is served.

    Parameters
    ----------
    product_id : str
    provider : str or None
        A provider that the product file knows. None: as `simulated` is served there, in the manner
        of the provider that it is like.

    Raises
    ------
    RecipeError
        The product cannot be simulated, or that provider does not serve it.
    """
    product = load_product(product_id)
    wanted = provider or "simulated"
    if wanted not in product.providers:
        raise RecipeError(
            f"cannot simulate {product_id} as {wanted!r} serves it; its product file knows: "
            f"{', '.join(product.providers)}."
        )
    facts = product.providers[wanted]
    like = provider or facts.like or _PLAIN
    return Shelf(product, _PLAIN if like == "local" else like, facts)


def files_of(shelf: Shelf) -> list[File]:
    """Return the files of a scene, as the provider's entry in the product file cuts them."""
    product, assets = shelf.product, shelf.facts.assets
    found: dict[str, list[Band | MaskLayer]] = {}
    members: list[Band | MaskLayer] = [*product.bands, *product.mask_layers]
    for member in members:
        wild = assets.get("*", ()) if isinstance(member, Band) else ()
        for entry in assets.get(member.name, wild):
            if entry.pixel_m in (None, member.pixel_m):
                found.setdefault(entry.asset, []).append(member)
    return [_file(shelf.product, key, members) for key, members in found.items()]


def _file(product: Product, key: str, members: list[Band | MaskLayer]) -> File:
    first = members[0]
    if isinstance(first, Band):
        dtype, inset_m = delivered_dtype(product), first.inset_m
    else:
        dtype, inset_m = layer_dtype(first.name), 0.0
    ordered = sorted(members, key=lambda member: member.index)
    return File(key, first.pixel_m, inset_m, dtype, tuple(ordered))

"""Search: what to make of the catalogues' answers (`pipeline.stages.search.questions` asks). Pure.

An item becomes a `Scene`, or an `Unusable` with a named reason: a catalogue's oddities never stop
a run, and never pass in silence either.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import shapely

from pipeline.ports import Query
from pipeline.products.model import Band, Product, ProviderFacts
from pipeline.recipe import Required, admits, told
from pipeline.records import Asset, Scene, Unusable
from pipeline.stages.search.item import (
    Facts,
    Grid,
    Table,
    Unfit,
    assets,
    file_indexes,
    footprint,
    grid,
    stated_table,
    utm_of,
)
from pipeline.stages.search.newest import version_of
from pipeline.stages.search.questions import facts_of
from pipeline.stages.search.sun import sun_elevation_deg

#: What `normalise` calls an item that was not asked for.
UNASKED = ("other-collection", "other-product", "outside-query")

#: Bands of shorter wavelengths see the sun's light, those of longer ones the ground's own warmth.
_SUNLIT_NM = 3000.0


def normalise(
    item: Mapping[str, Any],
    product: Product,
    provider_name: str,
    query: Query | None,
    *,
    bands: Collection[str] | None = None,
    require: Mapping[str, Required] | None = None,
) -> Scene | Unusable:
    """Turn a raw catalogue item into a scene, or say why it cannot be one.

    Parameters
    ----------
    item : dict
        Raw STAC item; nothing in it is trusted.
    product : Product
    provider_name : str
        Whose names it uses; addresses are checked later, against the provider's hosts.
    query : Query or None
        What was asked: catalogues do answer with other things. None: no check.
    bands : collection of str or None
        Bands that the recipe wants, each of which must be there. None: any one will do.
    require : mapping of str to Required or None
        What the recipe demands of further facts. An item that does not state one does not meet it.
        Items are judged one by one: where a newer processing does not pass, an older one may serve.
    """
    name = item.get("id")
    try:
        if not isinstance(name, str) or not name or len(name) > 500:
            raise Unfit("bad-value", f"id is {str(name)[:80]!r}")
        return _scene(item, name, product, provider_name, query, bands, require or {})
    except Unfit as unfit:
        return Unusable(
            product=product.id,
            provider=provider_name,
            item=str(name)[:500],
            reason=unfit.reason,
            detail=unfit.detail,
        )


# --- what to make of it --------------------------------------------------------------------------


def _scene(
    item: Mapping[str, Any],
    name: str,
    product: Product,
    provider: str,
    query: Query | None,
    bands: Collection[str] | None,
    require: Mapping[str, Required],
) -> Scene:
    names = facts_of(product, provider)
    if item.get("collection") != names.collection:
        raise Unfit("other-collection", f"collection is {str(item.get('collection'))[:80]!r}")
    facts = Facts(item, names)
    if "terrashard:problem" in facts.properties:
        raise Unfit("unreadable", str(facts.properties["terrashard:problem"]))
    moments = facts.moments()
    shape = footprint(item)
    if query is not None and not query.wants(names.collection, shape.bounds, moments):
        raise Unfit("outside-query", f"seen {moments[0]:%Y-%m-%d}, bounds {shape.bounds}")
    _check_kind(facts, names)
    further = facts.further()
    _check_required(further, require)
    datatake, tile = facts.identifier("datatake"), facts.identifier("tile")
    found = assets(item, _wanted_assets(product, names))
    _check_files(product, names, found, bands)
    pixels = _pixels(found, facts.properties) if product.warp is None else _outline(shape)
    sun = _sun(facts, product, shape, moments[0])
    return Scene(
        scene=f"{product.id}/{datatake}/{tile}",
        product=product.id,
        provider=provider,
        item=name,
        datatake=datatake,
        tile=tile,
        acquired=_middle(moments[0]) if product.temporal == "yearly" else moments[0],
        baseline=facts.text("baseline")[:40],
        offset_add=_offset(facts, product, names),
        cloud_percent=None if sun is not None and sun <= 0 else _percent(facts),
        sun_elevation_deg=sun,
        epsg=utm_of(shape, pixels) if pixels.epsg is None else pixels.epsg,
        x_min_m=pixels.x_min_m,
        y_min_m=pixels.y_min_m,
        x_max_m=pixels.x_max_m,
        y_max_m=pixels.y_max_m,
        geometry=shapely.to_wkb(shape),
        assets=[asset for asset, _ in found.values()],
        facts=json.dumps(further, separators=(",", ":")),
        band_indexes=_band_indexes(product, facts, names, found, bands),
    )


_Found = Mapping[str, tuple[Asset, Mapping[str, Any]]]


def _wanted_assets(product: Product, names: ProviderFacts) -> tuple[str, ...]:
    """Return the asset keys of all bands, then of all mask layers, each once."""
    parts = dict.fromkeys(band.part for band in product.bands)
    found = [names.entries(band) for band in product.bands]
    found += [names.marks(layer.name, part) for layer in product.mask_layers for part in parts]
    words = [word for band in product.bands for word in product.coefficients(band.name)]
    found += [names.assets.get(word, ()) for word in words]
    return tuple(dict.fromkeys(file.asset for files in found for file in files))


def _check_files(
    product: Product, names: ProviderFacts, found: _Found, bands: Collection[str] | None
) -> None:
    """Raise `Unfit` if a wanted band has no file."""
    missing, any_there = [], False
    for band in product.bands:
        there = any(file.asset in found for file in names.entries(band))
        any_there = any_there or there
        if not there and bands is not None and band.name in bands:
            missing.append(band.name)
    if missing or not any_there:
        raise Unfit("no-assets", f"no file for: {', '.join(missing) or 'any band'}")


def _band_indexes(
    product: Product,
    facts: Facts,
    names: ProviderFacts,
    found: _Found,
    bands: Collection[str] | None,
) -> list[int]:
    """Return where a file with many bands has each of them; empty if where the product says.

    Imaging spectrometers change their table with the processor: a band of another wavelength under
    the same number would pass unseen. What the file states comes first, then what is known of its
    processor.

    Raises
    ------
    Unfit
        A wanted band is not in the file, or it is not known which bands are.
    """
    many = [band for band in product.bands if band.name not in names.assets]
    places: dict[str, int] = {}
    for part in dict.fromkeys(band.part for band in many):
        inside = [band for band in many if band.part == part]
        entries = [found[f.asset][1] for f in names.entries(inside[0]) if f.asset in found]
        tables = [_indexes_in(entry, inside, product, facts) for entry in entries]
        if any(table != tables[0] for table in tables):
            raise Unfit("other-bands", "the files of the scene have their bands in other orders")
        places |= tables[0] if tables else {}
    if not places:
        return []
    inside = [band for band in many if band.name in places]
    missing = [name for name, at in places.items() if not at and (bands is None or name in bands)]
    if missing and (bands is not None or len(missing) == len(inside)):
        some = f"{missing[0]} at {product.band(missing[0]).wavelength_nm:g} nm"
        raise Unfit("other-bands", f"the file does not have {len(missing)} bands, such as {some}")
    expected = [band.index for band in product.bands]
    every = [places.get(band.name, band.index) for band in product.bands]
    return [] if every == expected else every


def _indexes_in(
    entry: Mapping[str, Any], bands: Sequence[Band], product: Product, facts: Facts
) -> dict[str, int]:
    """Return where one file has each of some bands, by name; 0 where it has none."""
    table = stated_table(entry)
    if table is None:
        _check_length(entry, bands)
        table = _known_table(product, facts)
    indexes = [b.index for b in bands] if table is None else file_indexes(bands, table)
    return dict(zip((band.name for band in bands), indexes, strict=True))


def _check_length(entry: Mapping[str, Any], bands: Collection[Band]) -> None:
    """Raise `Unfit` if a file that names its bands without wavelengths has another number."""
    table, most = entry.get("eo:bands", entry.get("bands")), max(band.index for band in bands)
    if isinstance(table, list) and len(table) != most:
        raise Unfit("other-bands", f"the file has {len(table)} bands, the product {most}")


def _known_table(product: Product, facts: Facts) -> Table | None:
    """Return the table of the processor that wrote a file; None: the product's own."""
    if not product.band_tables:
        return None
    baseline = facts.text("baseline")
    version = version_of(baseline)
    if not version:
        raise Unfit("no-baseline", f"baseline is {baseline[:40]!r}, the bands depend on it")
    chosen = None
    for table in product.band_tables:
        if version >= version_of(table.from_baseline):
            chosen = table
    last = None if chosen is None else chosen.to_baseline
    if chosen is None or (last is not None and version > version_of(last)):
        raise Unfit("other-bands", f"no band table is stated, none known of {baseline[:40]}")
    if not chosen.bands:
        return None
    return Table(
        np.array([band.index for band in chosen.bands]),
        np.array([band.wavelength_nm for band in chosen.bands]),
        np.array([band.fwhm_nm for band in chosen.bands]),
    )


def _pixels(found: _Found, properties: Mapping[str, Any]) -> Grid:
    """Return the grid of the first file that states one (bands come before mask layers)."""
    for _, entry in found.values():
        if (pixels := grid(entry, properties)) is not None:
            return pixels
    raise Unfit("no-crs", "no asset says where its pixels lie")


def _outline(shape: shapely.Geometry) -> Grid:
    """Return the bounds of a scene whose pixels lie on no lattice: those of its footprint."""
    west, south, east, north = shape.bounds
    return Grid(4326, west, south, east, north, pixel_m=None)


def _check_kind(facts: Facts, names: ProviderFacts) -> None:
    """Raise `Unfit` if an item is of another product that shares the collection."""
    for source, pattern in names.only.items():
        value = facts.stated(source)
        if not re.fullmatch(pattern, str(value)[:500]):
            raise Unfit("other-product", f"{source} is {str(value)[:80]!r}, not {pattern!r}")


def _check_required(
    further: Mapping[str, int | float | str], require: Mapping[str, Required]
) -> None:
    """Raise `Unfit` if a fact is not as the recipe requires."""
    for word, wanted in require.items():
        value = further.get(word)
        if value is None or not admits(wanted, value):
            stated = "not stated" if value is None else repr(value)
            raise Unfit("not-as-required", f"{word} is {stated}; `require` allows {told(wanted)}")


def _middle(moment: datetime) -> datetime:
    """Return the middle of a year: the map of a year is nearest to what was seen in it."""
    return datetime(moment.year, 7, 2, tzinfo=UTC)


def _percent(facts: Facts) -> float | None:
    """Return the cloud cover; -1 is how some catalogues say that it is not known."""
    value = facts.number("cloud_percent")
    if value is not None and not -1 <= value <= 100.5:
        raise Unfit("bad-value", f"cloud_percent is {value:g}")
    return None if value is None or value < 0 else min(value, 100.0)


def _sun(facts: Facts, product: Product, shape: shapely.Geometry, when: datetime) -> float | None:
    """Return how high the sun stood, worked out if the item does not say; None if the product
    needs no sun.

    A cloud cover of 0 says nothing of a scene that was taken at night.
    """
    if not any(band.wavelength_nm and band.wavelength_nm < _SUNLIT_NM for band in product.bands):
        return None
    stated = _elevation(facts)
    if stated is not None:
        return stated
    seen = max(shapely.get_parts(shape), key=shapely.area).centroid
    return sun_elevation_deg(when, lon_deg=seen.x, lat_deg=seen.y)


def _elevation(facts: Facts) -> float | None:
    zenith = facts.number("sun_zenith_deg")
    value = facts.number("sun_elevation_deg") if zenith is None else 90 - zenith
    if value is not None and not -90 <= value <= 90:
        raise Unfit("bad-value", f"sun_elevation_deg is {value:g}")
    return value


def _offset(facts: Facts, product: Product, names: ProviderFacts) -> int:
    """Return what must be added to delivered values to remove the processor's offset.

    Three witnesses: the baseline (by the product file), the metadata themselves (`offset_add`),
    and whether the provider has removed it already. Where they contradict one another the scene is
    unusable: the wrong choice shifts every reflectance by 0.1.
    """
    if not product.offsets:
        return 0
    baseline = facts.text("baseline")
    if not version_of(baseline):
        raise Unfit("no-baseline", f"baseline is {baseline[:40]!r}, the offset depends on it")
    expected = 0
    for offset in product.offsets:
        if version_of(baseline) >= version_of(offset.from_baseline):
            expected = offset.add
    stated = facts.number("offset_add")
    if stated is not None and stated != expected:
        raise Unfit(
            "offset-contradiction",
            f"the metadata say {stated:g}, baseline {baseline} has {expected}",
        )
    applied = facts.raw("offset_applied") if names.offset_applied is None else names.offset_applied
    if applied is True and expected == 0 and names.offset_applied is None:
        raise Unfit("offset-contradiction", f"baseline {baseline} has no offset to be removed")
    if applied is None and expected:
        raise Unfit("offset-unknown", "the item does not say whether the offset was removed")
    if applied not in (True, False, None):
        raise Unfit("bad-value", f"offset_applied is {str(applied)[:40]!r}")
    return 0 if applied else expected

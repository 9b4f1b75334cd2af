"""Look at recipes and products without touching a data set."""

from __future__ import annotations

import json
from pathlib import Path

from pipeline.errors import RecipeError
from pipeline.evaluate.windows import label_edge, labels_of
from pipeline.products.catalogue import load_product, product_ids
from pipeline.products.model import MaskRule, Product
from pipeline.recipe import Evaluate, LoadedRecipe, Points, load_recipe, recipe_names
from pipeline.sources.providers import Provider, provider_of, providers
from pipeline.stages.sample.draws import width_deg
from pipeline.stages.search.questions import facts_of
from pipeline.stages.slots import slots_of


def check_recipe(loaded: LoadedRecipe) -> None:
    """Refuse a recipe that cannot lead to its end, before any work is done for it.

    Raises
    ------
    RecipeError
        A provider is not known or does not serve the product, a file or folder is missing, the
        region or the period is empty, or what is to be trained does not fit the patches.
    """
    _check_places(loaded)
    if not slots_of(loaded.recipe.slots, settling_days=0, cutoff=None):
        slots = loaded.recipe.slots.model_dump(mode="json")
        raise RecipeError(
            f"recipe {loaded.name}: `slots` has no slot: no whole {slots['kind'].rstrip('s')} lies "
            f"between {slots['start']} and {slots['end']}; choose a longer period, or name dates "
            'of your own with `kind = "windows"`.'
        )
    if loaded.recipe.split.block_km * 1000 < loaded.cell_m:
        raise RecipeError(
            f"recipe {loaded.name}: `split.block_km` is {loaded.recipe.split.block_km:g}, less "
            f"than the edge of a cell ({loaded.cell_m / 1000:g} km): neighbours would stand in "
            "other parts; choose tens of kilometres."
        )
    if loaded.recipe.pretrain is not None:
        _check_training(loaded)


def _check_places(loaded: LoadedRecipe) -> None:
    sample = loaded.recipe.sample
    if (region := getattr(sample, "region", None)) is not None:
        width_deg(region)
    if isinstance(sample, Points) and not loaded.path(sample.path).is_file():
        raise RecipeError(f"`sample.path`: {loaded.path(sample.path)} does not exist.")
    for product, wish in loaded.wishes.items():
        for name in wish.providers:
            provider_of(loaded, product, name)
            facts_of(loaded.products[product], name)
        if "local" in wish.providers and wish.path is not None:
            path = loaded.path(wish.path)
            if not path.exists():
                raise RecipeError(f"`path` of product {product}: {path} does not exist.")


def _check_training(loaded: LoadedRecipe) -> None:
    """Refuse what `pretrain` and `evaluate` would refuse after everything is downloaded."""
    settings, judged = loaded.recipe.pretrain, loaded.recipe.evaluate
    images = [key for key, facts in loaded.products.items() if facts.kind == "image"]
    product = settings.product or (images or [""])[0] if settings is not None else ""
    if settings is None or not product:
        raise RecipeError(f"recipe {loaded.name}: `pretrain` needs a product of kind `image`.")
    what = f'recipe {loaded.name}: `pretrain.method = "{settings.method}"`'
    if settings.method in ("mae", "data2vec") and "vit" not in settings.backbone:
        raise RecipeError(
            f"{what} hides tokens, and {settings.backbone} has none; choose a ViT, such as "
            '`backbone = "vit_small"`.'
        )
    if settings.method == "decur" and len(images) < 2:
        raise RecipeError(f"{what} learns from two image products, and the recipe has one.")
    if settings.method == "paws" and not settings.support_labels and judged is None:
        raise RecipeError(f"{what} needs labels; name their product in `pretrain.support_labels`.")
    size_px = loaded.size_px(product)
    resized = "weights" in settings.model_fields_set  # patches are brought to what they were for
    if not resized and settings.crop_px is not None and not 1 <= settings.crop_px <= size_px:
        raise RecipeError(
            f"recipe {loaded.name}: `pretrain.crop_px` is {settings.crop_px}, but the patches of "
            f"{product} have {size_px} pixels; allowed are 1 to {size_px}."
        )
    if judged is not None:
        _check_evaluation(loaded, judged, judged.product or product)


def _check_evaluation(loaded: LoadedRecipe, judged: Evaluate, product: str) -> None:
    """Refuse labels and windows that `evaluate` would refuse after everything is trained."""
    labels = labels_of(loaded, judged)
    if product not in loaded.products:
        raise RecipeError(
            f"`evaluate.product` is {product!r}; products of recipe {loaded.name} are: "
            f"{', '.join(loaded.products)}."
        )
    size_px = loaded.size_px(product)
    label_edge(judged.window_px or size_px, size_px, loaded.size_px(labels))


def resolved(loaded: LoadedRecipe) -> str:
    """Return a recipe as indented JSON with its defaults, and what follows from it."""
    values = loaded.recipe.model_dump(mode="json", exclude_none=True)
    values["resolved"] = {
        "identity": loaded.identity,
        "stages": loaded.stages(),
        "cell_m": loaded.cell_m,
        "products": {
            key: {
                "bands": len(loaded.bands(key)),
                "pixel_m": loaded.pixel_m(key),
                "size_px": loaded.size_px(key),
            }
            for key in loaded.products
        },
    }
    return json.dumps(values, indent=2)


def copy_recipe(name: str, path: Path | None) -> Path:
    """Copy a built-in recipe to a new file and return its path; `RecipeError` if it exists."""
    if name not in recipe_names():
        raise RecipeError(
            f"there is no built-in recipe {name!r}; there are: {', '.join(recipe_names())}."
        )
    loaded = load_recipe(name)
    target = path if path is not None else Path(f"{name}.toml")
    if target.exists():
        raise RecipeError(f"{target} exists already; name another file.")
    target.write_text((loaded.folder / f"{name}.toml").read_text())
    return target


def list_products() -> str:
    """Return a line per built-in product: id, kind, bands, finest pixel, providers."""
    wide = max(map(len, product_ids()))
    lines = [
        f"{'product':<{wide}} {'kind':<7} {'bands':>5}  {'pixel':>6}  {'lattice':<10} providers"
    ]
    for key in product_ids():
        facts = load_product(key)
        finest = min(band.pixel_m for band in facts.bands)
        lines.append(
            f"{key:<{wide}} {facts.kind:<7} {len(facts.bands):>5}  {finest:>4g} m  "
            f"{facts.lattice or 'warped':<10} {', '.join(facts.providers)}"
        )
    return "\n".join(lines)


def describe_product(reference: str) -> str:
    """Return the bands, mask rules and sources of one product as text."""
    facts = load_product(reference)
    lines = [f"{facts.id}: {facts.title}", f"stored {facts.stored_dtype}, {_scale(facts)}", ""]
    lines.append(f"{'band':<8} {'nm':>8} {'fwhm':>6} {'pixel':>6}  default")
    for band in facts.bands:
        centre = f"{band.wavelength_nm:8.1f}" if band.wavelength_nm is not None else f"{'':8}"
        width = f"{band.fwhm_nm:6.1f}" if band.fwhm_nm is not None else f"{'':6}"
        default = "yes" if band.default else "no"
        lines.append(f"{band.name:<8} {centre} {width} {band.pixel_m:>4g} m  {default}")
    if facts.mask_rules:
        lines += ["", "mask, first match wins:"]
        for rule in facts.mask_rules:
            lines.append(f"  {rule.layer} {_test(rule, facts)} -> {rule.code}")
        lines.append(f"  otherwise -> {facts.mask_default}")
    if facts.mask is not None:
        named = ", ".join(f"{word} {name}" for word, name in facts.mask.bands if name)
        lines.append(f"mask of scenes without quality layers: {facts.mask.method} ({named})")
    for code, name in facts.classes.items():
        lines.append(f"class {code}: {name}")
    lines += ["", "providers:", *(f"  {_who(providers()[name])}" for name in facts.providers)]
    further = {word: None for own in facts.providers.values() for word in own.facts}
    if further:
        lines += ["", f"facts, for `require`: {', '.join(further)}"]
    lines += ["", f"terms: {facts.conditions}"]
    lines += ["", "sources:", *(f"  {source}" for source in facts.sources)]
    return "\n".join(lines)


def _test(rule: MaskRule, facts: Product) -> str:
    if rule.values is not None:
        return f"in {', '.join(map(str, rule.values))}"
    if rule.bits is not None:
        return f"has any bit of {rule.bits:#x}"
    bits = [f"{b.name} {b.saturated_bit}" for b in facts.bands if b.saturated_bit is not None]
    return f"has the bit of a stored band ({', '.join(bits)})"


def _who(provider: Provider) -> str:
    return f"{provider.name:<20} {provider.title}"


def _scale(facts: Product) -> str:
    return f"value = stored * {facts.scale:g} + {facts.offset:g} (unit {facts.unit})"

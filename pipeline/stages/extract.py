"""What becomes of a planned patch: which candidate is taken, what is rejected and why.

Nothing is read here. A task asks these functions before it reads (is the scene usable at all?),
after it has read the masks, and once more after the bands. Patches of one location, slot and group
stand and fall together: `Trial` walks such a group through its ranked candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.products.model import BandAsset, Product
from pipeline.raster.lattice import same_zone, window_of
from pipeline.raster.masks import Fractions
from pipeline.recipe import LoadedRecipe, ProductWish
from pipeline.records import PlannedPatch, Rejected, Scene

#: A shift or a difference of phase below this many pixels is rounding of the catalogue's numbers.
LATTICE_TOLERANCE_PX = 0.01


@dataclass(frozen=True, slots=True)
class Failure:
    """An error that ended one group of patches: a class for the ledger, and words for a person."""

    failure: str
    detail: str


@dataclass(slots=True)
class Trial:
    """A group of patches on its way through its candidates, best first.

    A rejection of any member sends the whole group to the next candidate. A failure ends it:
    which pixels are stored must not depend on the network's mood.
    """

    members: tuple[PlannedPatch, ...]
    """The leader first, then its followers in the recipe's order."""
    rank: int = 0
    """Candidate under trial."""
    accepted: bool = False
    """Whether the candidate of that rank passed so far."""
    failure: Failure | None = None
    refusals: dict[str, list[tuple[int, Rejected]]] = field(default_factory=dict)
    """By product: the ranks at which that member itself was unsuitable, and why."""

    @property
    def ranks(self) -> int:
        """How many candidates all members have."""
        return min(len(member.candidates) for member in self.members)

    @property
    def open(self) -> bool:
        """Whether there is something left to decide."""
        return self.failure is None and not self.accepted and self.rank < self.ranks

    def scenes(self, member: PlannedPatch) -> tuple[str, ...]:
        """Return the scenes of the candidate under trial, in mosaicking order."""
        return tuple(member.candidates[self.rank])

    def reject(self, member: PlannedPatch, why: Rejected) -> None:
        """Note why a member is unsuitable, and go on to the next candidate."""
        self.refusals.setdefault(member.product, []).append((self.rank, why))
        self.rank += 1
        self.accepted = False

    def fail(self, failure: Failure) -> None:
        """End the group; the first failure counts."""
        if self.failure is None:
            self.failure = failure
        self.accepted = False

    def verdict(self, member: PlannedPatch) -> Rejected:
        """Return why a member of a group without a usable candidate was rejected.

        Its best candidate's reason decides; the others are in the detail. A member that was
        never unsuitable itself fell `with-group`.
        """
        own = self.refusals.get(member.product, [])
        if own:
            told = "; ".join(
                f"candidate {rank}: {why.reason}" + (f" ({why.detail})" if why.detail else "")
                for rank, why in own
            )
            return Rejected(reason=own[0][1].reason, detail=told)
        if not member.candidates:
            return Rejected(reason="no-candidate")
        culprits = [m.product for m in self.members if m.product in self.refusals]
        culprits = culprits or [m.product for m in self.members if not m.candidates]
        return Rejected(reason="with-group", detail=", ".join(culprits))


def trials_of(patches: Iterable[PlannedPatch], products: Sequence[str]) -> list[Trial]:
    """Return the groups of some patches, in the order of their first patch.

    Parameters
    ----------
    patches : planned patches of one shard
    products : product ids in the recipe's order, which is that of the followers
    """
    groups: dict[tuple[str, str, str], list[PlannedPatch]] = {}
    for patch in patches:
        groups.setdefault((patch.location, patch.slot, patch.group), []).append(patch)
    order = {product: position for position, product in enumerate(products)}
    return [
        Trial(tuple(sorted(group, key=lambda p: (p.product != p.group, order[p.product]))))
        for group in groups.values()
    ]


def unsuitable(
    patch: PlannedPatch, scenes: Sequence[Scene], loaded: LoadedRecipe
) -> Rejected | None:
    """Return why a candidate cannot serve a patch, from what is known before reading, or None.

    Scenes that are warped may lie anywhere. Others must lie in the patch's zone and share one
    lattice, and where the cells are tiles of the product's own lattice, that one: a revisit then
    needs no resampling.
    """
    if not scenes:
        return Rejected(reason="no-candidate", detail="the candidate names no scene")
    if loaded.products[patch.product].warp is not None:
        return None
    for scene in scenes:
        if not same_zone(scene.epsg, patch.epsg):
            return Rejected(reason="other-zone", detail=f"{scene.scene} is in EPSG:{scene.epsg}")
    pixel_m = loaded.pixel_m(patch.product)
    shifts = [shift_of(patch, scene, pixel_m) for scene in scenes]
    tiled = loaded.recipe.cell.snap == "lattice"
    own = loaded.products[patch.product].lattice == loaded.lattice.id
    expected = (0.0, 0.0) if tiled and own and pixel_m == loaded.lattice.pixel_m else shifts[0]
    for scene, shift in zip(scenes, shifts, strict=True):
        apart = max(abs(shift[0] - expected[0]), abs(shift[1] - expected[1]))
        # A phase just below one pixel and one just above none are the same phase.
        if min(apart, abs(1 - apart)) > LATTICE_TOLERANCE_PX:
            return Rejected(
                reason="off-lattice",
                detail=f"{scene.scene} is {shift[0]:+.3f}, {shift[1]:+.3f} pixels off",
            )
    return None


def shift_of(patch: PlannedPatch, scene: Scene, pixel_m: float) -> tuple[float, float]:
    """Return the sub-pixel shift from the cell to the scene's own pixels, east and south."""
    _, east_px, south_px = window_of(
        epsg=patch.epsg,
        x_min_m=patch.x_min_m,
        y_max_m=patch.y_max_m,
        size_m=patch.size_m,
        raster_epsg=scene.epsg,
        raster_x_min_m=scene.x_min_m,
        raster_y_max_m=scene.y_max_m,
        pixel_m=pixel_m,
    )
    return east_px, south_px


def masked(scene: Scene, product: Product) -> bool:
    """Return whether a scene has quality layers, and every one that its product always delivers."""
    there = {
        layer.name: bool(files_of(layer.name, scene, product))
        for layer in product.mask_layers
        if not layer.per_band
    }
    optional = {layer.name for layer in product.mask_layers if layer.optional}
    return any(there.values()) and all(there[name] for name in there if name not in optional)


def mask_source(scene: Scene, product: Product) -> str:
    """Return what decides a scene's mask, in the ledger's word.

    `product` where its quality layers do, the method of `Product.mask` where it has none of them
    but every band that the method looks at, else `none`.
    """
    if masked(scene, product):
        return "product"
    if product.mask is None or lacking(scene, product):
        return "none"
    return product.mask.method


def lacking(scene: Scene, product: Product) -> list[str]:
    """Return the bands that the product's mask method looks at, and the scene does not have."""
    names = product.mask.names if product.mask else ()
    return [name for name in names if not files_of(name, scene, product)]


def weakest(sources: Iterable[str]) -> str:
    """Return what is said of a mask that scenes of several sources share: `none` before a method,
    and that before `product`."""
    return min(sources, key=lambda source: (source != "none", source == "product"))


def unmasked(scene: Scene, product: Product) -> Rejected:
    """Return the rejection of a scene whose mask nothing can decide."""
    detail = f"{scene.scene} has no quality layers"
    if product.mask is not None:
        absent = ", ".join(lacking(scene, product))
        detail += f", and `mask.method = {product.mask.method!r}` needs its {absent}"
    return Rejected(reason="unmasked", detail=detail)


def passes_unmasked(product: Product, wish: ProductWish) -> bool:
    """Return whether patches without quality layers may be written (labels never have any)."""
    return wish.allow_unmasked or (product.kind == "labels" and not product.mask_layers)


def judge(seen: Fractions, wish: ProductWish, source: str = "product") -> Rejected | None:
    """Return why a patch is unsuitable by its mask, or None; `source` is what decided the mask.

    Nothing seen at all is always unsuitable: there is nothing to write.
    """
    if seen.valid < wish.min_valid_fraction or seen.cloudy is None:
        return Rejected(
            reason="not-seen", detail=f"valid {seen.valid:.4f} < {wish.min_valid_fraction:g}"
        )
    if seen.cloudy > wish.max_cloud_fraction:
        by = "" if source == "product" else f" by {source}"
        return Rejected(
            reason="cloudy", detail=f"cloudy {seen.cloudy:.4f} > {wish.max_cloud_fraction:g}{by}"
        )
    return None


def files_of(name: str, scene: Scene, product: Product) -> tuple[BandAsset, ...]:
    """Return the files of a scene that hold a band or what else a name means; none if none does."""
    facts = product.providers.get(scene.provider)
    if facts is None:
        return ()
    band = product.by_name.get(name)
    entries = facts.assets.get(name, ()) if band is None else facts.entries(band)
    return _present(entries, scene)


def marks_of(layer: str, part: str | None, scene: Scene, product: Product) -> tuple[BandAsset, ...]:
    """Return the files of a scene that hold a layer which each part may have for itself."""
    facts = product.providers.get(scene.provider)
    return () if facts is None else _present(facts.marks(layer, part), scene)


def _present(entries: Iterable[BandAsset], scene: Scene) -> tuple[BandAsset, ...]:
    present = {asset.name for asset in scene.assets}
    return tuple(entry for entry in entries if entry.asset in present)


def indexes_of(scene: Scene, product: Product) -> dict[str, int]:
    """Return at which position, from 1, a scene's file has each band; without those it lacks."""
    if not scene.band_indexes:
        return {band.name: band.index for band in product.bands}
    found = zip(product.bands, scene.band_indexes, strict=True)
    return {band.name: index for band, index in found if index}


def address(scene: Scene, asset: str) -> str:
    """Return where an asset is read; those of one address are read together.

    Of an asset that the scene does not have, its name.
    """
    return next((there.href for there in scene.assets if there.name == asset), asset)


def choose_file(
    files: Sequence[BandAsset], *, native_m: float, stored_m: float, finer: bool
) -> BandAsset | None:
    """Return the file to read for one layer, or None if no allowed one is there.

    The stored pixel size itself is best. Then, where thinning out is allowed (`finer`), the
    coarsest of the finer files, and last the finest of the coarser ones, whose pixels repeat.
    """

    def pixel_of(file: BandAsset) -> float:
        return native_m if file.pixel_m is None else file.pixel_m

    below = [file for file in files if pixel_of(file) < stored_m] if finer else []
    above = [file for file in files if pixel_of(file) > stored_m]
    exact = [file for file in files if pixel_of(file) == stored_m]
    if exact:
        return exact[0]
    if below:
        return max(below, key=pixel_of)
    return min(above, key=pixel_of) if above else None


def too_many_failures(trials: Sequence[Trial]) -> bool:
    """Return whether over half of the patches that were tried failed.

    Then something larger than a scene is wrong, and nothing of the shard is committed.
    """
    tried = [trial for trial in trials if trial.ranks]
    failed = sum(len(trial.members) for trial in tried if trial.failure is not None)
    return 2 * failed > sum(len(trial.members) for trial in tried)


def needed_scenes(
    trials: Iterable[Trial], wants: Callable[[Trial], Iterable[PlannedPatch]]
) -> list[str]:
    """Return the scenes that the next decision needs, sorted, each once."""
    return sorted(
        {scene for trial in trials for member in wants(trial) for scene in trial.scenes(member)}
    )


def tried_by(
    trials: Iterable[Trial], wants: Callable[[Trial], Iterable[PlannedPatch]]
) -> Mapping[str, list[PlannedPatch]]:
    """Return, for every scene that the next decision needs, the patches that are at it."""
    tried: dict[str, list[PlannedPatch]] = {}
    for trial in trials:
        for member in wants(trial):
            for scene in dict.fromkeys(trial.scenes(member)):
                tried.setdefault(scene, []).append(member)
    return tried


def listed_by(trials: Iterable[Trial]) -> Mapping[str, list[PlannedPatch]]:
    """Return, for every scene, the patches that list it at the rank under trial or a later one."""
    listed: dict[str, dict[tuple[int, int], PlannedPatch]] = {}
    for trial in trials:
        for member in trial.members:
            for candidate in member.candidates[trial.rank :]:
                for scene in candidate:
                    listed.setdefault(scene, {})[(member.sample, member.time)] = member
    return {scene: list(patches.values()) for scene, patches in listed.items()}

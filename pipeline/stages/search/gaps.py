"""Who has what: scenes of one product by provider and month, and what each of them lacks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.records import Scene


@dataclass(frozen=True, slots=True)
class Gap:
    """One month of one provider; the same acquisition in several baselines is one scene."""

    product: str
    month: str
    """`2020-03`."""
    provider: str
    scenes: int
    missing: int
    """Scenes of this month that another provider has."""


class Tally:
    """Counts the scenes of one product as its providers answer.

    Holds a number a scene, so that whole archives can be compared.

    Parameters
    ----------
    product : str
    providers : sequence of str
        In the order of the columns; one without any scene has zeros.
    """

    def __init__(self, product: str, providers: Sequence[str]) -> None:
        self._product = product
        self._providers = tuple(providers)
        #: Month and scene to the providers that have it, as bits.
        self._seen: dict[tuple[str, str], int] = {}

    def add(self, scene: Scene) -> None:
        """Count one scene of one provider."""
        key = f"{scene.acquired:%Y-%m}", scene.scene
        self._seen[key] = self._seen.get(key, 0) | 1 << self._providers.index(scene.provider)

    def gaps(self, months: Sequence[str]) -> list[Gap]:
        """Return every month of every provider, months in order.

        `months` are wanted ones: they are listed even where nobody has a scene.
        """
        have: Counter[tuple[str, int]] = Counter()
        total: Counter[str] = Counter()
        for (month, _), bits in self._seen.items():
            total[month] += 1
            for place in range(len(self._providers)):
                have[month, place] += bits >> place & 1
        return [
            Gap(self._product, month, name, have[month, place], total[month] - have[month, place])
            for month in sorted({*months, *total})
            for place, name in enumerate(self._providers)
        ]

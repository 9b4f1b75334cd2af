"""Does DeCUR part what two modalities share from what each has alone?

Run: `python -m benchmarks decur_factors` (about two minutes on two cores). Two modalities of an
item are made from planted factors: one common to both, one of each alone, mixed by random networks
and blurred by noise that differs between views. After training, a linear map is fitted from the
common dimensions of a modality's projection, and from its unique ones, to each factor; there are as
many common as unique dimensions. The figure is the share of variance it explains on items that were
not seen before (R²). The common factor should be read best from the common dimensions, a
modality's own from its unique ones.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch
from torch import Tensor, nn

from pipeline.pretrain.methods.decur import DeCUR
from pipeline.pretrain.methods.method import View

SEEDS = range(10)
FACTOR, OBSERVED, WIDTH = 4, 24, 32
STEPS, BATCH, HELD_OUT = 600, 256, 4096
NOISE = 0.1
MODALITIES = ("first", "second")


class World(NamedTuple):
    """How items look in either modality."""

    mixers: tuple[nn.Module, nn.Module]

    def draw(self, count: int, random: torch.Generator) -> tuple[list[Tensor], list[list[Tensor]]]:
        """Draw items: factors (common, first's, second's), and two views in either modality."""
        factors = list(torch.randn(3, count, FACTOR, generator=random))
        seen = []
        for own, mixer in zip(factors[1:], self.mixers, strict=True):
            clean = mixer(torch.cat([factors[0], own], dim=1)).detach()
            seen.append(
                [clean + NOISE * torch.randn(clean.shape, generator=random) for _ in range(2)]
            )
        return factors, seen


def world() -> World:
    """Make a world whose mixtures cannot be undone by a linear map."""
    first, second = (
        nn.Sequential(nn.Linear(2 * FACTOR, 64), nn.LeakyReLU(0.3), nn.Linear(64, OBSERVED))
        for _ in MODALITIES
    )
    return World((first, second))


def encoder() -> nn.Module:
    """Make an encoder: (batch, OBSERVED, 1, 1) -> (batch, 64)."""
    return nn.Sequential(nn.Flatten(), nn.Linear(OBSERVED, 128), nn.ReLU(), nn.Linear(128, 64))


def train(seed: int) -> tuple[World, DeCUR]:
    """Train on a world of this seed."""
    torch.manual_seed(seed)
    made = world()
    method = DeCUR(
        (encoder(), encoder()),
        (64, 64),
        projector_width=WIDTH,
        common=WIDTH // 2,
        off_diagonal=0.0051,
    )
    optimizer = torch.optim.AdamW(method.parameters(), lr=2e-3, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    random = torch.Generator().manual_seed(seed)
    for _ in range(STEPS):
        _, seen = made.draw(BATCH, random)
        learned = method([as_view(view) for views in seen for view in views], random)
        optimizer.zero_grad()
        learned.loss.backward()
        optimizer.step()
        schedule.step()
    return made, method.eval()


def as_view(values: Tensor) -> View:
    """Return vectors as images of one pixel."""
    image = values[:, :, None, None]
    return View(image, torch.ones_like(image, dtype=torch.bool))


@torch.no_grad()
def explained(made: World, method: DeCUR, seed: int) -> dict[tuple[str, str, str], float]:
    """Return R² by (modality, factor, dimensions)."""
    random = torch.Generator().manual_seed(1000 + seed)
    factors, seen = made.draw(2 * HELD_OUT, random)
    parts = (
        (method.encoder, method.projector),
        (method.second_encoder, method.second_projector),
    )
    found = {}
    for number, (modality, (net, head)) in enumerate(zip(MODALITIES, parts, strict=True)):
        projected = head(net(as_view(seen[number][0]).image))
        blocks = {"common": projected[:, : method.common], "unique": projected[:, method.common :]}
        wanted = {"common": factors[0], "own": factors[1 + number]}
        for name, block in blocks.items():
            for factor, truth in wanted.items():
                found[modality, factor, name] = r_squared(block, truth)
    return found


def r_squared(features: Tensor, truth: Tensor) -> float:
    """Fit on the first half of the rows, return the variance explained on the second."""
    ones = features.new_ones(len(features), 1)
    (x, x_new), (y, y_new) = torch.cat([features, ones], dim=1).chunk(2), truth.chunk(2)
    left = (y_new - x_new @ torch.linalg.lstsq(x, y).solution).square().sum()
    return float(1 - left / (y_new - y.mean(dim=0)).square().sum())


def main() -> int:
    torch.set_num_threads(1)
    print("| seed | modality | common factor: common / unique dims | own: unique / common dims |")
    print("|---|---|---|---|")
    parted = 0
    for seed in SEEDS:
        found = explained(*train(seed), seed)
        right = True
        for modality in MODALITIES:
            shared = [found[modality, "common", block] for block in ("common", "unique")]
            own = [found[modality, "own", block] for block in ("unique", "common")]
            right &= shared[0] > shared[1] and own[0] > own[1]
            print(
                f"| {seed} | {modality} | {shared[0]:.2f} / {shared[1]:.2f} "
                f"| {own[0]:.2f} / {own[1]:.2f} |",
                flush=True,
            )
        parted += right
    print(f"\nParted in {parted} of {len(SEEDS)} seeds.")
    return 0 if parted == len(SEEDS) else 1


if __name__ == "__main__":
    sys.exit(main())

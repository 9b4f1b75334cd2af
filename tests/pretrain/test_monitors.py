"""Collapse is seen, and a healthy spread is not called one."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from pipeline.errors import RecipeError
from pipeline.pretrain.monitors import health, wrong_with


def gaussian(count, width, seed=0):
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_one_point_is_a_collapse():
    measured = health(torch.ones(16, 8) * torch.arange(1, 17).unsqueeze(1))
    assert measured.std == pytest.approx(0, abs=1e-7)
    assert measured.cosine == pytest.approx(1)
    assert measured.rank == pytest.approx(1, abs=1e-5)
    assert measured.collapsed


def test_an_even_spread_is_healthy():
    measured = health(gaussian(2000, 16))
    assert measured.std == pytest.approx(1, abs=0.02)
    assert measured.cosine == pytest.approx(0, abs=0.01)
    assert measured.rank == pytest.approx(16, rel=0.01)
    assert not measured.collapsed


def test_dimensional_collapse_shows_in_the_rank():
    assert health(gaussian(500, 2) @ gaussian(2, 32, seed=1)).rank < 2.1


def test_the_cosine_is_the_mean_over_pairs():
    points = gaussian(7, 3)
    unit = F.normalize(points, dim=1)
    pairs = (unit @ unit.T)[~torch.eye(7, dtype=torch.bool)]
    assert health(points).cosine == pytest.approx(pairs.mean().item(), abs=1e-6)


def test_zero_embeddings_are_a_collapse_and_no_error():
    assert health(torch.zeros(4, 3)).collapsed


@pytest.mark.parametrize(
    "embedding",
    [
        gaussian(40, 90),
        gaussian(90, 40),
        gaussian(64, 64) * torch.logspace(0, -4, 64),
        gaussian(70, 3).double() @ gaussian(3, 50, seed=1).double(),
        gaussian(1, 20).expand(30, 20),
        torch.zeros(5, 4),
    ],
)
def test_the_rank_is_that_of_the_singular_values(embedding):
    unit = F.normalize(embedding.double(), dim=1)
    singular = torch.linalg.svdvals(unit)
    share = singular / singular.sum().clamp(min=1e-300)
    wanted = torch.exp(-torch.special.xlogy(share, share).sum()).item()
    assert health(embedding).rank == pytest.approx(wanted, rel=1e-6)


def lines(*pairs, features=(0.9, 20.0), product=0.0):
    own = {"embedding_std": features[0], "effective_rank": features[1], "product": product}
    return [{"compared_std": std, "compared_rank": rank, **own} for std, rank in pairs]


def test_a_run_is_wrong_after_three_bad_lines_running_and_not_before():
    well, one, flat = (0.9, 20.0), (0.05, 20.0), (0.9, 5.0)
    assert wrong_with(lines(well, one, one)) is None
    assert "deviation 0.050" in wrong_with(lines(well, one, one, one))
    assert wrong_with(lines(well, flat, flat, well)) is None
    assert "span 5.0" in wrong_with(lines(well, flat, flat, flat))


def test_a_fresh_encoder_that_says_nearly_the_same_of_everything_may_get_better():
    rising = lines((0.02, 5.0), (0.08, 6.0), (0.12, 7.0), (0.15, 8.0))
    assert wrong_with(rising) is None
    assert "almost one" in wrong_with(lines((0.02, 5.0), (0.02, 5.0), (0.02, 5.0)))
    fallen = lines((0.8, 20.0), (0.18, 20.0), (0.19, 20.0), (0.17, 20.0))
    assert "deviation 0.170" in wrong_with(fallen)


def test_lines_of_a_product_are_held_against_its_own_first_one():
    wide, narrow = lines(*[(0.9, 60.0)] * 4), lines(*[(0.9, 8.0)] * 4, product=1.0)
    mixed = [row for pair in zip(wide, narrow, strict=True) for row in pair]
    assert wrong_with(mixed) is None
    assert wrong_with(wide + narrow) is None
    flat = lines(*[(0.9, 2.0)] * 3, product=1.0)
    assert "span 2.0 dimensions, at first they spanned 8.0" in wrong_with(mixed + flat)
    # Lines of the other product between them neither heal nor harm.
    assert wrong_with(mixed + flat + wide) is None
    assert "spanned 8.0" in wrong_with([*mixed, *wide, *flat])


def test_where_nothing_is_compared_the_features_are_watched():
    nothing = [(float("nan"), float("nan"))]
    well = lines(*nothing * 3)
    assert wrong_with(well) is None
    flat = lines(*nothing * 3, features=(0.9, 5.0))
    assert wrong_with(well + flat[:2]) is None
    assert "the features span 5.0 dimensions, at first" in wrong_with(well + flat)
    assert "the features are almost one" in wrong_with(lines(*nothing * 3, features=(0.05, 20)))
    # Where something is compared, features may be flat.
    assert wrong_with(lines(*[(0.9, 20.0)] * 4, features=(0.05, 1.0))) is None


@pytest.mark.parametrize("stopped", [True, False])
def test_a_run_that_says_the_same_of_everything_is_stopped_unless_told_not_to(stopped, tiny_run):
    tiny = tiny_run("moco", health_every=1, learning_rate=1e-9, stop_collapsed=stopped)
    last = tiny.run.method.head[-1]
    with torch.no_grad():
        last.weight.zero_()
        last.bias.fill_(1.0)
    if stopped:
        with pytest.raises(RecipeError, match=r"after step 3 .*deviation 0\.000"):
            tiny.go_on(5)
    else:
        tiny.go_on(5)
        assert tiny.run.step == 5

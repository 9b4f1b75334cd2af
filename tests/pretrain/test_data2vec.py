"""data2vec: its loss by hand, what it hides, what its teacher sees."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.pretrain.draws import draw_seed, own_uniform
from pipeline.pretrain.methods.data2vec import (
    LEAST_ASPECT,
    LEAST_BLOCK,
    TRIES,
    Data2Vec,
    draw_blocks,
    regression_loss,
)


def data2vec(vit, **more):
    torch.manual_seed(0)
    settings = {"mask_fraction": 0.5, "steps": 11, "first_momentum": 0.9, "drop_path": 0.0, **more}
    return Data2Vec(vit(3), **settings)


def test_the_loss_of_a_case_done_by_hand():
    predicted = torch.tensor([[[1.0, 4.0], [9.0, 9.0]]])
    target = torch.zeros(1, 2, 2)
    # Errors 1 (square: 1 / (2 * 2)) and 4 (straight: 4 - 2 / 2) of the one wanted token.
    found = regression_loss(predicted, target, torch.tensor([[True, False]]))
    assert found.item() == pytest.approx((0.25 + 3.0) / 2)
    assert regression_loss(predicted, target, torch.zeros(1, 2, dtype=torch.bool)) == 0


@given(st.integers(2, 9), st.integers(2, 9), st.floats(0.05, 0.95), st.integers(0, 99))
def test_blocks_hide_some_tokens_and_no_more_than_asked(rows, columns, fraction, seed):
    random = torch.Generator().manual_seed(seed)
    hidden = draw_blocks(5, rows, columns, fraction, random)
    assert hidden.shape == (5, rows * columns)
    counts = hidden.sum(dim=1)
    assert (counts >= 1).all()
    assert (counts <= max(round(rows * columns * fraction), 1)).all()
    assert not hidden.all(dim=1).any()


def one_by_one(rows, columns, fraction, draws):
    """Hide blocks of one item, block by block, with the draws of each try."""
    most = min(max(round(rows * columns * fraction), 1), rows * columns - 1)
    least = min(max(round(LEAST_BLOCK * rows * columns), 1), most)
    hidden = np.zeros((rows, columns), bool)
    failures = 0
    while (left := most - int(hidden.sum())) and failures < TRIES:
        size, aspect, upper, start = next(draws)
        area = least + size * max(left - least, 0)
        ratio = math.exp((2 * aspect - 1) * -math.log(LEAST_ASPECT))
        tall = min(max(round(math.sqrt(area * ratio)), 1), rows)
        wide = min(max(round(math.sqrt(area / ratio)), 1), columns)
        y, x = int(upper * (rows - tall + 1)), int(start * (columns - wide + 1))
        block = hidden[y : y + tall, x : x + wide]
        added = int((~block).sum())
        if 0 < added <= left:
            block[:] = True
        failures = 0 if 0 < added <= left else failures + 1
    if not hidden.any():
        hidden[rows // 2, columns // 2] = True
    return hidden.ravel()


@given(st.integers(2, 14), st.integers(2, 14), st.floats(0.05, 0.95), st.integers(0, 99))
def test_blocks_of_a_batch_are_those_of_its_items_one_by_one(rows, columns, fraction, seed):
    found = draw_blocks(3, rows, columns, fraction, torch.Generator().manual_seed(seed))
    key = draw_seed(torch.Generator().manual_seed(seed))
    for item in range(3):
        draws = (own_uniform(3, 4, key, tries)[item] for tries in range(10**6))
        assert np.array_equal(found[item].numpy(), one_by_one(rows, columns, fraction, draws))


def test_on_a_usual_grid_nearly_as_much_is_hidden_as_asked_in_blocks():
    random = torch.Generator().manual_seed(0)
    drawn = draw_blocks(40, 14, 14, 120 / 196, random)
    assert 100 < drawn.sum(dim=1).float().mean() <= 120
    grid = drawn.view(40, 14, 14)
    together = (grid[:, :, 1:] == grid[:, :, :-1]).float().mean()
    assert together > 0.75  # of tokens hidden one by one 0.52 would be like their neighbour


def test_the_teacher_sees_whole_images_and_its_upper_blocks_are_the_target(tiny_vit, view):
    method = data2vec(tiny_vit).eval()
    image = view(3, 3).image
    outputs = []
    vit = method.teacher
    hooks = [
        block.register_forward_hook(lambda _m, _i, out: outputs.append(out)) for block in vit.blocks
    ]
    vit.forward_features(image)
    for hook in hooks:
        hook.remove()
    last = F.layer_norm(outputs[-1], (24,))  # one of two blocks is the upper half
    torch.testing.assert_close(method.targets(image), F.layer_norm(last, (24,)))


def test_the_student_sees_nothing_of_hidden_tokens(tiny_vit, view):
    method = data2vec(tiny_vit).eval()
    image = view(2, 3).image
    hidden = torch.zeros(2, 16, dtype=torch.bool)
    hidden[:, 0] = True
    changed = image.clone()
    changed[:, :, :2, :2] += 5  # the first token of 2 x 2 pixels
    with torch.no_grad():
        torch.testing.assert_close(method.see(image, hidden), method.see(changed, hidden))
        assert not torch.allclose(method.see(image, ~hidden), method.see(changed, ~hidden))
        whole = method.see(image, torch.zeros_like(hidden))
        torch.testing.assert_close(whole, method.encoder.forward_features(image))


def test_tokens_that_were_never_seen_are_no_target(tiny_vit, view):
    method = data2vec(tiny_vit)
    seen = view(2, 3)
    method(
        [seen._replace(valid=torch.zeros_like(seen.valid))], torch.Generator().manual_seed(0)
    ).loss.backward()
    assert not any(p.grad.any() for p in method.encoder.parameters() if p.grad is not None)


def test_the_teacher_follows_straight_to_its_last_momentum(tiny_vit):
    method = data2vec(tiny_vit, first_momentum=0.999)
    found = [method.momentum(step) for step in (0, 5, 10)]
    assert found == pytest.approx([0.999, 0.9994, 0.9998])


def test_all_weights_of_the_student_learn_and_none_of_the_teacher(tiny_vit, view):
    method = data2vec(tiny_vit, drop_path=0.2)
    learned = method([view(4, 3)], torch.Generator().manual_seed(1))
    learned.loss.backward()
    assert all(p.grad is not None for p in method.encoder.parameters() if p.requires_grad)
    assert all(p.grad is None for p in method.teacher.parameters())
    assert learned.loss.dtype == torch.float32

"""MAE: its loss by hand and by torch's own, its tokens by lightly's implementation."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightly.models.modules import MaskedVisionTransformerTIMM
from lightly.models.utils import patchify as lightly_patchify
from torch.nn import functional as F

from pipeline.pretrain.methods.mae import (
    MAE,
    Decoder,
    choose_hidden,
    patchify,
    reconstruction_loss,
    take,
)
from pipeline.pretrain.methods.method import View

#: Of the decoder.
SMALL = Decoder(width=16, blocks=1, heads=2)


def test_the_loss_of_a_case_done_by_hand():
    # One item, two tokens of two values. First: mean 1 and sample variance 2, so -1/sqrt(2) and
    # 1/sqrt(2) are wanted. Second: one value was seen, it is its own mean, so 0 is wanted.
    target = torch.tensor([[[0.0, 2.0], [5.0, 999.0]]], dtype=torch.float64)
    valid = torch.tensor([[[True, True], [True, False]]])
    predicted = torch.tensor([[[0.0, 0.0], [3.0, 7.0]]], dtype=torch.float64)
    assert reconstruction_loss(predicted, target, valid).item() == pytest.approx((0.5 + 9) / 2)


def test_without_invalid_values_the_loss_is_that_of_the_paper():
    random = torch.Generator().manual_seed(0)
    target = torch.randn(2, 3, 8, generator=random)
    predicted = torch.randn(2, 3, 8, generator=random)
    mean, variance = target.mean(-1, keepdim=True), target.var(-1, keepdim=True)
    wanted = F.mse_loss(predicted, (target - mean) / (variance + 1e-6) ** 0.5)
    ours = reconstruction_loss(predicted, target, torch.ones_like(target, dtype=torch.bool))
    torch.testing.assert_close(ours, wanted)


@given(st.integers(0, 2**32), st.floats(-1e3, 1e3))
def test_what_was_never_seen_changes_neither_loss_nor_gradient(seed, junk):
    random = torch.Generator().manual_seed(seed)
    target = torch.randn(2, 3, 8, generator=random, dtype=torch.float64)
    valid = torch.rand(2, 3, 8, generator=random) < 0.6
    predicted = torch.randn(2, 3, 8, generator=random, dtype=torch.float64, requires_grad=True)
    results = []
    for value in (0.0, junk):
        loss = reconstruction_loss(predicted, torch.where(valid, target, value), valid)
        results.append((loss, *torch.autograd.grad(loss, predicted)))
    torch.testing.assert_close(results[0], results[1])
    assert not results[0][1][~valid].any()


def test_an_image_never_seen_costs_nothing():
    nothing = torch.zeros(1, 2, 4)
    assert reconstruction_loss(nothing + 3, nothing, nothing.bool()).item() == 0


@pytest.mark.parametrize("bands", [1, 4, 202])
def test_tokens_hold_the_pixels_of_their_square(bands):
    image = torch.arange(2 * bands * 36, dtype=torch.float32).view(2, bands, 6, 6)
    tokens = patchify(image, 3)
    square = image[1, :, 3:6, 0:3]
    torch.testing.assert_close(tokens[1, 2], square.permute(1, 2, 0).flatten())
    torch.testing.assert_close(tokens, lightly_patchify(image, 3))


@given(st.integers(2, 40), st.floats(0.01, 0.99), st.integers(0, 2**32))
def test_every_token_is_either_kept_or_hidden(tokens, fraction, seed):
    chosen = choose_hidden(3, tokens, fraction, torch.Generator().manual_seed(seed))
    assert abs(chosen.hidden.shape[1] - tokens * fraction) <= 1
    assert min(chosen.kept.shape[1], chosen.hidden.shape[1]) >= 1
    together = torch.cat(chosen, dim=1).sort(dim=1).values
    assert torch.equal(together, torch.arange(tokens).expand(3, -1))


def test_kept_tokens_are_encoded_as_lightly_does(tiny_vit, view):
    vit = tiny_vit(3)
    method = MAE(vit, bands=3, mask_fraction=0.5, decoder=SMALL).eval()
    theirs = MaskedVisionTransformerTIMM(
        vit, weight_initialization="skip", pos_embed_initialization="skip"
    ).eval()
    image = view(2, 3).image
    kept = choose_hidden(2, 16, 0.5, torch.Generator().manual_seed(0)).kept
    torch.testing.assert_close(method.encode(image, kept), theirs.encode(image, idx_keep=kept))


def test_with_every_token_kept_the_encoder_is_timms_own(tiny_vit, view):
    vit = tiny_vit(3).eval()
    image = view(2, 3).image
    everything = torch.arange(16).expand(2, -1)
    encoded = MAE(vit, bands=3, mask_fraction=0.5, decoder=SMALL).encode(image, everything)
    torch.testing.assert_close(encoded, vit.forward_features(image))


def test_hidden_pixels_do_not_reach_the_prediction(tiny_vit, view):
    method = MAE(tiny_vit(3), bands=3, mask_fraction=0.75, decoder=SMALL).eval()
    image = view(2, 3).image
    chosen = choose_hidden(2, 16, 0.75, torch.Generator().manual_seed(0))
    wanted = method.decode(method.encode(image, chosen.kept), chosen)
    shown = torch.zeros(2, 16, 1).scatter(1, chosen.kept.unsqueeze(-1), 1.0)
    shown = shown.view(2, 1, 4, 4).repeat_interleave(2, 2).repeat_interleave(2, 3)
    other = torch.where(shown.bool(), image, 1e3)
    torch.testing.assert_close(method.decode(method.encode(other, chosen.kept), chosen), wanted)


def test_a_few_steps_on_one_image_lower_the_loss(tiny_vit, view):
    torch.manual_seed(0)
    method = MAE(tiny_vit(5), bands=5, mask_fraction=0.5, decoder=SMALL)
    smooth = F.interpolate(view(4, 5, 2).image, size=8, mode="bilinear")
    seen = View(smooth, torch.ones_like(smooth, dtype=torch.bool))
    optimizer = torch.optim.AdamW(method.parameters(), lr=1e-3)
    losses = []
    for step in range(25):
        learned = method([seen], torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        learned.loss.backward()
        optimizer.step()
        losses.append(learned.loss.item())
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_take_returns_tokens_by_number():
    tokens = torch.arange(12.0).view(2, 3, 2)
    picked = take(tokens, torch.tensor([[2, 0], [1, 1]]))
    assert picked.tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_the_loss_is_float32_inside_autocast(tiny_vit, view):
    with torch.autocast("cpu", torch.bfloat16):
        learned = MAE(tiny_vit(3), bands=3, mask_fraction=0.5, decoder=SMALL)(
            [view(4, 3)], torch.Generator().manual_seed(0)
        )
    assert learned.loss.dtype == learned.embedding.dtype == torch.float32

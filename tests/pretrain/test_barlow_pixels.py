"""Barlow Twins on pixels: windows, neighbours, and changes of spectra."""

from __future__ import annotations

import pytest
import torch

from pipeline.pretrain.encoders import spectra
from pipeline.pretrain.methods.barlow import barlow_loss
from pipeline.pretrain.methods.barlow_pixels import NEIGHBOURHOOD_PX, PixelBarlow, cut_windows
from pipeline.pretrain.methods.method import View


def random(seed=0):
    return torch.Generator().manual_seed(seed)


def places(view):
    """Make each value say where it stands: 100 y + x, in all bands."""
    _, _, height, width = view.image.shape
    y, x = torch.arange(height).view(-1, 1), torch.arange(width)
    return view._replace(image=(100.0 * y + x).expand(view.image.shape).clone())


def test_windows_are_cut_where_their_corners_are(view):
    whole = places(view(2, 3))
    corners = torch.tensor([[[0, 0], [5, 2]], [[1, 4], [3, 3]]])
    cut = cut_windows(whole, corners, 3)
    assert cut.image.shape == cut.valid.shape == (4, 3, 3, 3)
    wanted = [100.0 * y + x for y, x in corners.flatten(0, 1).tolist()]
    assert cut.image[:, 1, 0, 0].tolist() == wanted
    assert cut.image[1, 0].tolist() == whole.image[0, 0, 5:8, 2:5].tolist()


@pytest.mark.parametrize("window_px", [1, 3])
def test_the_windows_of_a_pair_are_neighbours(window_px, view, tiny_net, monkeypatch):
    cut = []

    def keep(part, _):
        cut.append(part.image[:, 0, 0, 0])
        return part

    monkeypatch.setattr("pipeline.pretrain.methods.barlow_pixels.disturb", keep)
    method = PixelBarlow(
        tiny_net(3),
        6,
        window_px=window_px,
        windows=50,
        projector_width=8,
        off_diagonal=0.005,
    )
    whole = places(view(4, 3))
    learned = method([whole, whole], random())
    first, second = cut
    assert len(first) == 200
    rows = (first // 100 - second // 100).abs()
    columns = (first % 100 - second % 100).abs()
    for apart in (rows, columns):
        assert apart.max() == NEIGHBOURHOOD_PX
        assert apart.min() == 0
    assert learned.embedding.shape == (200, 6)


def test_the_loss_is_barlows_of_the_windows(view, tiny_net, monkeypatch):
    seen = []
    plain = spectra.disturb

    def keep(part, generator):
        seen.append(plain(part, generator))
        return seen[-1]

    monkeypatch.setattr("pipeline.pretrain.methods.barlow_pixels.disturb", keep)
    method = PixelBarlow(
        tiny_net(3), 6, window_px=3, windows=4, projector_width=8, off_diagonal=0.005
    )
    learned = method([view(3, 3, seed=0), view(3, 3, seed=1)], random())
    with torch.no_grad():
        first, second = (method.projector(method.encoder(part.image)) for part in seen)
    wanted = barlow_loss(first, second, 0.005)
    assert learned.loss.item() == pytest.approx(wanted.item(), rel=1e-4)


def half_seen(view, count=40, size_px=24, edge_px=4):
    """Items of which the right half was seen, the last of which nothing was."""
    whole = view(count, 3, size_px)
    valid = torch.zeros_like(whole.valid)
    valid[:-1, :, :, size_px // 2 :] = True
    return View(torch.where(valid, whole.image, 0.0), valid)


def test_windows_are_drawn_where_an_item_was_seen(view, tiny_net, monkeypatch):
    cut = []

    def keep(part, _):
        cut.append(part)
        return part

    monkeypatch.setattr("pipeline.pretrain.methods.barlow_pixels.disturb", keep)
    method = PixelBarlow(
        tiny_net(3), 6, window_px=4, windows=25, projector_width=8, off_diagonal=0.005
    )
    one = half_seen(view)
    # The second time was seen elsewhere too: a pair must show enough at both.
    other = View(one.image.flip(2), torch.ones_like(one.valid))
    method([one, other], random())
    shares = [part.valid[:-25].float().mean(dim=(1, 2, 3)) for part in cut]
    # Of eight draws all show too little once in a hundred times.
    assert (shares[0] >= 0.7).float().mean() > 0.97
    assert shares[1].min() == 1
    # They are still of many places.
    assert len(torch.unique(cut[1].image[:25, 0, 0, 0])) > 10


def test_a_pair_of_which_nothing_was_seen_moves_no_correlation(view, tiny_net, monkeypatch):
    monkeypatch.setattr("pipeline.pretrain.methods.barlow_pixels.disturb", lambda part, _: part)
    results = []
    for items in (slice(None), slice(None, -1)):
        method = PixelBarlow(
            tiny_net(3), 6, window_px=24, windows=1, projector_width=8, off_diagonal=0.005
        ).eval()  # fixed moments: the networks see each pair alone
        seen = half_seen(view)
        one = View(seen.image[items], seen.valid[items])
        two = View(one.image + 0.1 * one.image.square(), one.valid)
        learned = method([one, two], random())
        learned.loss.backward()
        results.append([learned.loss.detach(), *(p.grad for p in method.parameters())])
    torch.testing.assert_close(results[0], results[1], rtol=1e-4, atol=1e-5)


def test_a_batch_of_which_nothing_was_seen_is_no_error(view, tiny_net):
    nothing = View(torch.zeros(4, 3, 8, 8), torch.zeros(4, 3, 8, 8, dtype=torch.bool))
    method = PixelBarlow(
        tiny_net(3), 6, window_px=2, windows=2, projector_width=8, off_diagonal=0.005
    )
    learned = method([nothing, nothing], random())
    learned.loss.backward()
    assert learned.loss.item() == pytest.approx(8, rel=1e-4)


def holes(view, count=200, bands=30, size_px=3):
    whole = view(count, bands, size_px)
    valid = torch.rand(whole.image.shape, generator=random(3)) < 0.8
    return View(torch.where(valid, whole.image, 0.0), valid)


@pytest.mark.parametrize(
    "change",
    [
        spectra.disturb,
        spectra.turn,
        spectra.average_bands,
        spectra.gain_and_noise,
        lambda view, generator: spectra.leave_out(view, (1, 0, 0), generator),
        lambda view, generator: spectra.leave_out(view, (0, 1, 1), generator),
    ],
)
def test_what_was_never_seen_stays_unseen_and_changes_nothing(change, view):
    clean = holes(view)
    dirty = View(torch.where(clean.valid, clean.image, 1e6), clean.valid)
    found, other = change(clean, random()), change(dirty, random())
    assert torch.equal(found.valid, other.valid)
    assert torch.equal(found.image[found.valid], other.image[found.valid])
    assert found.valid.sum() <= clean.valid.sum()
    assert not found.image[~found.valid].any()


def test_left_out_bands_are_whole_bands_of_a_window_and_about_as_many_as_said(view):
    whole = view(400, 30, 3)
    found = spectra.leave_out(whole, (1, 0, 0), random()).valid
    gone = ~found.flatten(2).any(dim=2)
    assert torch.equal(gone, ~found.flatten(2).all(dim=2))
    assert gone.float().mean() == pytest.approx(spectra.OFTEN * spectra.DROPPED, abs=0.02)
    touched = gone.any(dim=1).float().mean()
    assert touched == pytest.approx(spectra.OFTEN, abs=0.07)


def test_averaged_bands_keep_their_mean(view):
    whole = view(50, 30, 3)
    found = spectra.average_bands(whole, random())
    torch.testing.assert_close(found.image.mean(dim=1), whole.image.mean(dim=1), atol=1e-5, rtol=0)
    assert not torch.equal(found.image, whole.image)


def test_noise_and_gain_are_as_large_as_said(view):
    whole = view(4000, 8, 1)
    one = whole._replace(image=torch.ones_like(whole.image))
    found = spectra.gain_and_noise(one, random()).image
    assert found.mean(dim=1).std().item() == pytest.approx(
        (spectra.GAIN**2 + spectra.NOISE**2 / 8) ** 0.5, rel=0.05
    )

"""Features: of the size of training, in batches that fit, read ahead, the same in any chunks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pipeline.evaluate import features
from pipeline.evaluate.features import EncoderFeatures, describe_windows, read_windows
from pipeline.evaluate.windows import cut_windows
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.methods.method import View
from pipeline.recipe import Pretrain
from pipeline.store.reader import open_dataset

CPU = torch.device("cpu")


class Means(nn.Module):
    """Mean and deviation of every band; keeps the shapes and types that it was given."""

    def __init__(self):
        super().__init__()
        self.seen = []
        self.mix = nn.Linear(4, 4, bias=False)
        nn.init.eye_(self.mix.weight)

    def forward(self, image):
        means = self.mix(image.mean(dim=(2, 3)))
        self.seen.append((tuple(image.shape), means.dtype))
        return torch.cat([means, image.std(dim=(2, 3), correction=0)], dim=1)


def windows_of(published, window_px=8):
    dataset = open_dataset(published.store)
    images, labels = dataset.patches("image"), dataset.patches("labels")
    how = {"min_label_fraction": 0.5, "ignore": 0, "static": True}
    mean, std, _ = dataset.statistics("image")
    windows = cut_windows(images, labels, window_px=window_px, **how)
    return images, windows, Normaliser(mean, std, images.fill)


def test_any_chunks_give_the_pixels_of_every_window_in_order(published, monkeypatch):
    images, windows, normaliser = windows_of(published)
    bands, mask = images.read(slice(None))
    wanted = []
    for patch, y, x in zip(windows.patch, windows.y_px, windows.x_px, strict=True):
        place = (..., slice(y, y + 8), slice(x, x + 8))
        wanted.append(normaliser(*(torch.from_numpy(a[patch][place][None]) for a in (bands, mask))))
    for patches in (1, 3, 10_000):
        monkeypatch.setitem(features.CHUNK_BYTES, "cpu", patches * 4 * 16**2 * 4)
        found = list(read_windows(images, windows, normaliser, device=CPU, threads=2))
        assert len(found) == -(-len(images) // patches)
        for part in ("image", "valid"):
            whole = torch.cat([getattr(view, part) for view in found])
            assert torch.equal(whole, torch.cat([getattr(view, part) for view in wanted]))


def test_a_batch_of_an_imaging_spectrometer_is_more_than_a_handful():
    patch = 202 * 128**2 * 4
    assert features.CHUNK_BYTES["cpu"] // patch >= 16
    assert features.CHUNK_BYTES["cuda"] // patch >= 64


def test_an_encoder_is_given_no_more_than_fits(published, monkeypatch):
    images, windows, normaliser = windows_of(published)
    encoder = Means()
    monkeypatch.setitem(features.CHUNK_BYTES, "cpu", 2 * 4 * 32**2 * 4)  # two images of 32 px
    kinds = {"model": EncoderFeatures(encoder, 32)}
    found = describe_windows(images, windows, normaliser, kinds, device=CPU)["model"]
    assert len(found) == len(windows)
    assert {shape for shape, _ in encoder.seen} == {(2, 4, 32, 32)}


@pytest.mark.parametrize(("precision", "dtype"), [("fp32", "float32"), ("bf16", "bfloat16")])
def test_bfloat16_is_used_where_the_recipe_trained_with_it(precision, dtype):
    encoder = Means()
    settings = Pretrain(precision=precision)
    image = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    view = View(image, torch.ones_like(image, dtype=torch.bool))
    found = EncoderFeatures.trained(encoder, 8, settings)(view)
    assert [str(kind) for _, kind in encoder.seen] == [f"torch.{dtype}"]
    assert found.dtype == torch.float32


@pytest.mark.parametrize("window_px", [1, 3, 5, 8])
def test_an_encoder_of_pixels_is_shown_windows_of_the_size_it_was_trained_on(window_px):
    """A patch shrunk to 9 pixels has other textures than any window that it learned from."""
    encoder = Means()
    settings = Pretrain(method="barlow_pixels")
    image = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(image, dtype=torch.bool)
    found = EncoderFeatures.trained(encoder, window_px, settings)(View(image, valid))
    assert {shape[2:] for shape, _ in encoder.seen} == {(window_px, window_px)}
    starts = np.round(np.linspace(0, 8 - window_px, -(-8 // window_px))).astype(int)
    covered = np.zeros((8, 8), bool)
    wanted = []
    for y in starts:
        for x in starts:
            covered[y : y + window_px, x : x + window_px] = True
            wanted.append(encoder(image[..., y : y + window_px, x : x + window_px]))
    assert covered.all()
    torch.testing.assert_close(found, torch.stack(wanted).mean(dim=0))


def test_windows_of_which_nothing_was_seen_do_not_count():
    image = torch.ones(2, 4, 6, 6)
    valid = torch.ones_like(image, dtype=torch.bool)
    valid[0, ..., :3], image[0, ..., :3] = False, 0
    valid[1], image[1] = False, 0
    settings = Pretrain(method="barlow_pixels")
    found = EncoderFeatures.trained(Means(), 3, settings)(View(image, valid))
    assert found[:, :4].tolist() == [[1.0] * 4, [0.0] * 4]

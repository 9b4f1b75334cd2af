"""An export gives the encoder's own features, in whichever program loads it."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import onnxruntime
import pytest
import timm
import torch

from pipeline.errors import IntegrityError, RecipeError
from pipeline.pretrain import export as exports
from pipeline.pretrain.card import card
from pipeline.pretrain.encoders.backbones import EncoderShape, build_encoder
from pipeline.pretrain.export import StoredToFeatures, export, load_folder
from pipeline.pretrain.model import Model
from pipeline.recipe import Pretrain

PLAIN = EncoderShape("small", 4, 64, 4)
TOKENS = EncoderShape("vit_tiny", 5, 8, 4)
OWN_STEM = EncoderShape("small", 4, 32, 4)
SPECTRAL = EncoderShape("spec_vit_tiny", 75, 8, 4)


pytestmark = pytest.mark.usefixtures("small_backbone")


def describe(shape: EncoderShape, fill: float | None = -32768) -> Model:
    bands = shape.bands
    return Model(
        name="mine",
        dataset="alps",
        identity="",
        version=3,
        digest="d" * 64,
        product="image",
        bands=tuple(f"b{k}" for k in range(bands)),
        wavelength_nm=tuple(500.0 + k for k in range(bands)),
        mean=tuple(1000.0 + k for k in range(bands)),
        std=tuple(300.0 + k for k in range(bands)),
        fill=fill,
        shape=shape,
        settings=Pretrain(backbone=shape.backbone),
        step=7,
        weights_sha256="e" * 64,
    )


def encoder_of(shape: EncoderShape) -> torch.nn.Module:
    return build_encoder(shape, seed=1).eval()


def images(shape: EncoderShape, count: int = 2) -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    return torch.randn(count, shape.bands, shape.image_px, shape.image_px, generator=random)


@pytest.mark.parametrize("shape", [PLAIN, TOKENS])
@torch.inference_mode()
def test_timm_loads_what_it_can_build(shape, tmp_path):
    encoder = encoder_of(shape)
    assert export(describe(shape), encoder, tmp_path / "out") == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    loaded = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    torch.testing.assert_close(loaded(images(shape)), encoder(images(shape)), rtol=0, atol=1e-6)
    assert loaded.pretrained_cfg["mean"] == list(describe(shape).mean)


@pytest.mark.parametrize("shape", [PLAIN, OWN_STEM, SPECTRAL])
@torch.inference_mode()
def test_we_load_every_export(shape, tmp_path):
    encoder = encoder_of(shape)
    export(describe(shape), encoder, tmp_path / "out")
    assert torch.equal(load_folder(tmp_path / "out")(images(shape)), encoder(images(shape)))


@pytest.mark.parametrize("shape", [OWN_STEM, SPECTRAL])
def test_a_stem_of_our_own_is_not_passed_off_as_timms(shape, tmp_path):
    export(describe(shape), encoder_of(shape), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text())["architecture"] == "terrashard"
    assert "load_folder" in (tmp_path / "out/README.md").read_text()


@pytest.mark.parametrize(("shape", "fill"), [(PLAIN, -32768), (OWN_STEM, -32768), (SPECTRAL, None)])
def test_the_card_s_own_lines_give_features_of_stored_patches(shape, fill, tmp_path, monkeypatch):
    model, encoder = describe(shape, fill), encoder_of(shape)
    export(model, encoder, tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    lines = Path("README.md").read_text().split("```python\n")[1].split("```")[0]
    space = {}
    exec(lines, space)
    stored = torch.zeros(1, shape.bands, shape.image_px, shape.image_px)
    with torch.inference_mode():
        wanted = StoredToFeatures(model, encoder).eval()(stored)
    torch.testing.assert_close(space["features"], wanted, rtol=1e-4, atol=1e-5)


def test_exported_files_have_the_rights_of_any_new_file(tmp_path):
    (tmp_path / "any").touch()
    export(describe(PLAIN), encoder_of(PLAIN), tmp_path / "out")
    rights = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert rights == {(tmp_path / "any").stat().st_mode}


@pytest.mark.parametrize(("shape", "fill"), [(OWN_STEM, -32768), (SPECTRAL, None)])
@torch.inference_mode()
def test_onnx_gives_the_features_of_stored_pixels(shape, fill, tmp_path):
    model, encoder = describe(shape, fill), encoder_of(shape)
    assert "model.onnx" in export(model, encoder, tmp_path / "out", onnx=True)
    stored = images(shape, count=5) * 300 + 1000
    stored[:, 0, 3, :4] = torch.nan if fill is None else fill
    unseen = torch.zeros(5, shape.bands, shape.image_px, shape.image_px, dtype=torch.bool)
    unseen[:, 0, 3, :4] = True
    mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (model.mean, model.std))
    wanted = encoder(torch.where(unseen, 0.0, (stored - mean) / std))
    session = onnxruntime.InferenceSession(str(tmp_path / "out/model.onnx"))
    found = torch.from_numpy(session.run(None, {"stored": stored.numpy()})[0])
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-4


def test_an_onnx_file_that_says_something_else_is_not_kept(tmp_path, monkeypatch):
    """The comparison must be able to fail: compare with an encoder of other weights."""
    other = StoredToFeatures(describe(OWN_STEM), build_encoder(OWN_STEM, seed=2)).eval()
    real = exports._compare_onnx
    monkeypatch.setattr(exports, "_compare_onnx", lambda _, path, stored: real(other, path, stored))
    with pytest.raises(IntegrityError, match="differ"):
        export(describe(OWN_STEM), encoder_of(OWN_STEM), tmp_path / "out", onnx=True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(RecipeError, match="exists"):
        export(describe(PLAIN), encoder_of(PLAIN), tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_missing_packages_are_named(tmp_path, monkeypatch):
    monkeypatch.setattr(exports, "ONNX_PACKAGES", ("onnx", "nowhere"))
    with pytest.raises(RecipeError, match=r"nowhere must be installed.*export"):
        export(describe(PLAIN), encoder_of(PLAIN), tmp_path / "out", onnx=True)


@pytest.mark.parametrize(
    "text", ["{}", "[]", "not json", '{"terrashard": {"shape": {"bands": 1}}}']
)
def test_a_folder_of_someone_else_is_refused(text, tmp_path: Path):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(IntegrityError, match=str(tmp_path)):
        load_folder(tmp_path)


def test_the_card_says_what_a_user_must_know():
    model = describe(TOKENS)
    text = card(model)
    wanted = (
        model.weights_sha256,
        model.digest,
        "b0 (500 nm), b1",
        "-32768",
        "7 of 1000",
        "tokens",
    )
    for words in wanted:
        assert words in text, words
    assert "the training part alone" in text
    seen = Pretrain(backbone="vit_tiny", transductive=True)
    assert "**transductive**" in card(model.model_copy(update={"settings": seen}))


def test_the_card_does_not_list_hundreds_of_bands():
    shape = dataclasses.replace(SPECTRAL, bands=202)
    assert "b0 (500 nm), ..., b201 (701 nm)" in card(describe(shape))

"""Files laid out exactly as the releases are: names and shapes from their published code."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pipeline.errors import RecipeError
from pipeline.pretrain import checkpoint
from pipeline.pretrain.card import card
from pipeline.pretrain.encoders.released import LAYOUTS, SENTINEL_2, read_released
from pipeline.recipe import load_recipe
from pipeline.run.embed import run_embed
from pipeline.run.pretrain import run_pretrain
from pipeline.run.simulate import simulate_shards
from pipeline.store.objects import open_store
from pipeline.store.reader import open_dataset
from pipeline.store.tables import read_table

#: Blocks of each stage, and whether they are bottlenecks (He et al. 2016, table 1).
STAGES = {"resnet18": ((2, 2, 2, 2), False), "resnet50": ((3, 4, 6, 3), True)}


def norm(name: str, width: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    yield from ((f"{name}.{part}", (width,)) for part in ("weight", "bias"))
    yield from ((f"{name}.running_{part}", (width,)) for part in ("mean", "var"))
    yield f"{name}.num_batches_tracked", ()


def resnet(kind: str, bands: int | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a torchvision ResNet; without bands, of SpectralEarth's (no stem)."""
    blocks, bottleneck = STAGES[kind]
    shapes: dict[str, tuple[int, ...]] = {}
    if bands is not None:
        shapes["conv1.weight"] = (64, bands, 7, 7)
        shapes.update(norm("bn1", 64))
    before = 64 if bands is not None else 128
    for stage, count in enumerate(blocks):
        planes = 64 * 2**stage
        out = planes * 4 if bottleneck else planes
        for block in range(count):
            name = f"layer{stage + 1}.{block}"
            wide = bands is None and stage == block == 0  # CustomBottleneck: 256 inside
            inner = 256 if wide else planes
            convolutions = (
                [(before, inner, 1), (inner, inner, 3), (inner, out, 1)]
                if bottleneck
                else [(before, inner, 3), (inner, out, 3)]
            )
            for number, (there, here, edge) in enumerate(convolutions, 1):
                shapes[f"{name}.conv{number}.weight"] = (here, there, edge, edge)
                shapes.update(norm(f"{name}.bn{number}", here))
            if before != out or (stage and not block):
                shapes[f"{name}.downsample.0.weight"] = (out, before, 1, 1)
                shapes.update(norm(f"{name}.downsample.1", out))
            before = out
    return shapes


def vit_small(bands: int, image_px: int, patch_px: int) -> dict[str, tuple[int, ...]]:
    """Names and shapes of DINO's, MoCo v3's and timm's ViT-S with a class token."""
    width, tokens = 384, (image_px // patch_px) ** 2 + 1
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "pos_embed": (1, tokens, width),
        "patch_embed.proj.weight": (width, bands, patch_px, patch_px),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    for block in range(12):
        inside = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
        for name, (out, there) in inside.items():
            shapes[f"blocks.{block}.{name}.weight"] = (out * width, there * width)
            shapes[f"blocks.{block}.{name}.bias"] = (out * width,)
        for name in ("norm1", "norm2"):
            shapes[f"blocks.{block}.{name}.weight"] = (width,)
            shapes[f"blocks.{block}.{name}.bias"] = (width,)
    return shapes


def adapter() -> dict[str, tuple[int, ...]]:
    """SpectralEarth's nn.Sequential: convolution, norm, ReLU, three times."""
    shapes: dict[str, tuple[int, ...]] = {}
    for place, (before, out, edge) in {0: (1, 32, 7), 3: (32, 64, 7), 6: (64, 128, 5)}.items():
        shapes[f"{place}.weight"], shapes[f"{place}.bias"] = (out, before, edge, 1, 1), (out,)
        shapes.update(norm(f"{place + 1}", out))
    return shapes


def drawn(shapes: dict[str, tuple[int, ...]], prefix: str = "") -> dict[str, Tensor]:
    """Random weights of these shapes; running variances above 0."""
    random = torch.Generator().manual_seed(3)
    return {
        prefix + name: torch.zeros((), dtype=torch.long)
        if name.endswith("tracked")
        else 0.05 * torch.rand(shape, generator=random) + 0.001
        for name, shape in shapes.items()
    }


def file_of(layout: str, backbone: str, folder: Path) -> Path:
    """Write a file as the release's own code would have."""
    bands = len(LAYOUTS[layout].bands)
    core = resnet(backbone, bands) if backbone in STAGES else vit_small(bands, 224, 16)
    extra = {"weight": torch.zeros(128, 2048)}
    if layout == "ssl4eo-s12-moco":
        held = {
            **drawn(core, "module.encoder_q."),
            "module.encoder_q.fc.0.weight": extra["weight"],
            **drawn(core, "module.encoder_k."),
            "module.queue": torch.zeros(128, 64),
            "module.queue_ptr": torch.zeros(1, dtype=torch.long),
        }
        whole = {"epoch": 100, "arch": "resnet50", "state_dict": held, "optimizer": {"state": {}}}
    elif layout == "ssl4eo-s12-moco-v3":
        held = {
            **drawn(core, "module.base_encoder."),
            "module.base_encoder.head.0.weight": extra["weight"],
            **drawn(core, "module.momentum_encoder."),
            "module.predictor.0.weight": extra["weight"],
        }
        whole = {"state_dict": held}
    elif layout == "ssl4eo-s12-dino":
        head = {"module.head.mlp.0.weight": extra["weight"]}
        whole = {"student": {}, "teacher": {**drawn(core, "module.backbone."), **head}}
    elif layout == "ssl4eo-s12-mae":
        decoder = {"mask_token": torch.zeros(1, 1, 512), "decoder_embed.bias": torch.zeros(512)}
        whole = {"model": {**drawn(core), **decoder}}
    elif layout == "spectral-earth":
        core = vit_small(128, 128, 4) if backbone == "vit_small" else resnet(backbone, None)
        name = "vit_core." if backbone == "vit_small" else "resnet."
        whole = {**drawn(adapter(), "spectral_adapter."), **drawn(core, name)}
    else:
        whole = drawn(core)
    path = folder / "weights.pth"
    torch.save(whole, path)
    return path


@pytest.mark.parametrize(
    ("layout", "backbone"),
    [
        ("ssl4eo-s12-moco", "resnet50"),
        ("ssl4eo-s12-moco-v3", "vit_small"),
        ("ssl4eo-s12-dino", "vit_small"),
        ("ssl4eo-s12-mae", "vit_small"),
        ("torchgeo-ssl4eo-s12", "resnet18"),
        ("ssl4eo-l-etm-toa", "resnet18"),
        ("ssl4eo-l-oli-sr", "vit_small"),
        ("spectral-earth", "resnet50"),
        ("spectral-earth", "vit_small"),
    ],
)
def test_every_weight_of_a_release_finds_its_place(layout, backbone, tmp_path):
    path = file_of(layout, backbone, tmp_path)
    released = read_released(path, layout=layout, backbone=backbone)
    assert released.image_px == (128 if layout == "spectral-earth" else 224)
    assert released.bands == LAYOUTS[layout].bands
    assert not released.encoder.training
    # Every number of the encoder is one of the file's: the drawn ones are all above 0.
    floats = [p for p in released.encoder.state_dict().values() if p.dtype == torch.float32]
    assert all(float(p.min()) >= 0.001 and float(p.max()) <= 0.051 for p in floats)


@torch.inference_mode()
def test_bands_go_by_name_and_not_by_order(tmp_path):
    path = file_of("torchgeo-ssl4eo-s12", "resnet18", tmp_path)
    mine = ("B04", "B8a", "B12", "B02")
    few = read_released(path, layout="torchgeo-ssl4eo-s12", backbone="resnet18", bands=mine)
    whole = read_released(path, layout="torchgeo-ssl4eo-s12", backbone="resnet18")
    image = torch.rand(1, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    full = torch.zeros(1, 13, 64, 64)
    full[:, [SENTINEL_2.index(name) for name in ("B4", "B8A", "B12", "B2")]] = image
    torch.testing.assert_close(few.encoder(image), whole.encoder(full), rtol=1e-5, atol=1e-6)
    assert not torch.allclose(few.encoder(image.flip(1)), whole.encoder(full), rtol=1e-5)


@pytest.mark.parametrize(
    ("bands", "message"),
    [
        (["B02", "NIR"], "not the bands NIR; its bands are: B1, B2"),
        (["B02", "B2"], "each band once"),
        ([], "each band once"),
    ],
)
def test_bands_it_does_not_know_are_named(bands, message, tmp_path):
    path = file_of("torchgeo-ssl4eo-s12", "resnet18", tmp_path)
    with pytest.raises(RecipeError, match=message):
        read_released(path, layout="torchgeo-ssl4eo-s12", backbone="resnet18", bands=bands)


def test_a_spectrum_is_taken_whole_and_in_order(tmp_path):
    path = file_of("spectral-earth", "vit_small", tmp_path)
    bands = LAYOUTS["spectral-earth"].bands
    for wrong in (bands[::-1], bands[:-1]):
        with pytest.raises(RecipeError, match="ascending wavelength"):
            read_released(path, layout="spectral-earth", backbone="vit_small", bands=wrong)
    named = [f"B{int(band[1:]):03d}" for band in bands]  # as our own product file has them
    assert len(named) == 202
    read_released(path, layout="spectral-earth", backbone="vit_small", bands=named)


def test_stored_values_are_brought_to_the_range_it_was_trained_on(tmp_path):
    path = file_of("ssl4eo-l-etm-toa", "resnet18", tmp_path)
    mine = ("B1", "B6_VCID_1")
    released = read_released(path, layout="ssl4eo-l-etm-toa", backbone="resnet18", bands=mine)
    assert released.ranges == ((0.0, 0.4), (248.15, 318.15))
    normaliser = released.normaliser(scale=0.01, offset=0.0, fill=-32768)
    stored = torch.tensor([20.0, 28315.0]).view(1, 2, 1, 1)
    image = normaliser(stored, torch.ones(1, 1, 1, dtype=torch.uint8)).image
    torch.testing.assert_close(image.ravel(), torch.tensor([0.5, 0.5]))
    path = file_of("spectral-earth", "vit_small", tmp_path)
    with pytest.raises(RecipeError, match="statistics of the data set"):
        read_released(path, layout="spectral-earth", backbone="vit_small").normaliser(
            scale=1, offset=0, fill=None
        )


class Harmful:
    """Runs code when it is unpickled."""

    ran = False

    def __reduce__(self):
        return (setattr, (Harmful, "ran", True))


@pytest.mark.parametrize("guest", [Harmful(), argparse.Namespace(lr=0.1)])
def test_a_file_that_holds_more_than_weights_is_refused_unread(guest, tmp_path):
    torch.save({"state_dict": {}, "args": guest}, tmp_path / "bad.pth")
    with pytest.raises(RecipeError, match="more than weights"):
        read_released(tmp_path / "bad.pth", layout="ssl4eo-s12-moco", backbone="resnet50")
    assert not Harmful.ran


@pytest.mark.parametrize("content", [b"", b"<!DOCTYPE html>", b"PK\x03\x04broken"])
@pytest.mark.parametrize("name", ["weights.pth", "weights.safetensors"])
def test_a_file_that_is_something_else_is_said_to_be(content, name, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(RecipeError, match=name):
        read_released(tmp_path / name, layout="ssl4eo-s12-moco", backbone="resnet50")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"surprise.weight": torch.zeros(1)}, "it has surprise.weight"),
        ({"layer1.0.conv1.weight": None}, r"lacks layer1\.0\.conv1\.weight"),
        ({"layer1.0.conv1.weight": torch.zeros(64, 64, 1, 1)}, "not .64, 64, 3, 3"),
        ({"conv1.weight": torch.zeros(64, 12, 7, 7)}, "should see 13 bands"),
    ],
)
def test_weights_of_another_kind_are_refused_with_the_key_that_says_so(change, message, tmp_path):
    weights = {**drawn(resnet("resnet18", 13)), **change}
    kept = {key: value for key, value in weights.items() if value is not None}
    save_file(kept, tmp_path / "weights.safetensors")
    with pytest.raises(RecipeError, match=message):
        read_released(
            tmp_path / "weights.safetensors", layout="torchgeo-ssl4eo-s12", backbone="resnet18"
        )


@pytest.mark.parametrize(
    ("layout", "backbone", "message"),
    [
        ("ssl4eo-s13", "resnet18", "'ssl4eo-s13' is not known; allowed are: ssl4eo-s12-moco"),
        ("torchgeo-ssl4eo-s12", "alexnet", "'alexnet'"),
        ("ssl4eo-s12-dino", "resnet18", "has no 'teacher'"),
        ("torchgeo-ssl4eo-s12", "vit_small", "it is no ViT"),
        ("torchgeo-ssl4eo-s12", "resnet50", "is no resnet50"),
    ],
)
def test_what_was_asked_for_must_fit_the_file(layout, backbone, message, tmp_path):
    path = file_of("torchgeo-ssl4eo-s12", "resnet18", tmp_path)
    with pytest.raises(RecipeError, match=message):
        read_released(path, layout=layout, backbone=backbone)


def test_a_checkpoint_of_another_method_is_refused_by_its_keys(tmp_path):
    torch.save({"state_dict": drawn(resnet("resnet18", 13), "module.encoder_b.")}, tmp_path / "w")
    with pytest.raises(RecipeError, match=r"no key encoder_b\.bn1\.bias"):
        read_released(tmp_path / "w", layout="ssl4eo-s12-moco", backbone="resnet18")


RECIPE = """
name = "one-sensor"
sample = {{ strategy = "grid", region = [15.0, 51.0, 15.1, 51.1] }}
cell = {{ lattice = "s2r10", size_px = 64 }}
slots = {{ kind = "months", start = 2023-04-01, end = 2023-06-01 }}
split = {{ block_km = 1, train = 1.0, val = 0.0, test = 0.0 }}

[[product]]
id = "sentinel-2-l2a"
provider = "simulated"
bands = ["B08", "B04", "B11"]

[pretrain]
weights = {{ path = "weights.pth", layout = "{layout}" }}
backbone = "{backbone}"
batch_size = 4
queue = 8
{pretrain}
"""


def recipe(folder: Path, pretrain: str, layout="torchgeo-ssl4eo-s12", backbone="resnet18"):
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(layout=layout, backbone=backbone, pretrain=pretrain))
    return load_recipe(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A root of Sentinel-2 patches of 64 pixels, to look at with weights beside it."""
    made = tmp_path_factory.mktemp("weights")
    simulate_shards(open_store(made / "root"), recipe(made, "steps = 1"), locations=4)
    return made


@torch.inference_mode()
def test_released_weights_are_a_model_of_the_root_without_a_step(folder):
    path, store = file_of("torchgeo-ssl4eo-s12", "resnet18", folder), open_store(folder / "root")
    loaded = recipe(folder, "steps = 0")
    report = run_pretrain(loaded, store, device="cpu")
    model = checkpoint.load(store, report.model)
    assert (report.steps, model.step, model.bands) == (0, 0, ("B08", "B04", "B11"))
    assert (model.mean, model.std) == ((0.0,) * 3, (10_000.0,) * 3), "reflectance from 0 to 1"
    assert model.origin.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert str(folder) not in model.model_dump_json()
    assert report.model.startswith("torchgeo-ssl4eo-s12-resnet18-v1-")
    text = card(model)
    assert "as released, not trained here" in text
    assert model.origin.sha256 in text
    assert run_pretrain(loaded, store, device="cpu").model == report.model

    found = run_embed(loaded, store, device="cpu")
    (key,) = [key for key in store.list(found.folder) if key.endswith(".parquet")]
    features = np.stack(read_table(store, key)["features"].to_numpy(zero_copy_only=False))
    bands, mask = open_dataset(store).patches("sentinel-2-l2a").read(slice(None))
    image = torch.from_numpy(bands * (mask > 0)[:, None] * 1e-4).float()
    released = read_released(
        path, layout="torchgeo-ssl4eo-s12", backbone="resnet18", bands=model.bands
    )
    wanted = released.encoder(image).numpy()
    np.testing.assert_allclose(features, wanted, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize(
    ("layout", "backbone", "size_px"),
    [("torchgeo-ssl4eo-s12", "resnet18", 64), ("ssl4eo-s12-moco-v3", "vit_small", 224)],
)
def test_a_run_begins_with_released_weights_and_moves_them(folder, layout, backbone, size_px):
    path, store = file_of(layout, backbone, folder), open_store(folder / "root")
    loaded = recipe(folder, "steps = 1\nlearning_rate = 1e-4", layout, backbone)
    report = run_pretrain(loaded, store, name=backbone.replace("_", "-"), device="cpu")
    model = checkpoint.load(store, report.model)
    assert model.shape.image_px == size_px
    bands = ("B08", "B04", "B11")
    began = read_released(path, layout=layout, backbone=backbone, bands=bands).encoder
    ends = checkpoint.load_encoder(store, model).state_dict()
    weights = dict(began.named_parameters())
    assert weights.keys() <= ends.keys()
    assert all(torch.allclose(ends[key], weights[key], atol=1e-3) for key in weights)
    assert any(not torch.equal(ends[key], weights[key]) for key in weights)


@pytest.mark.parametrize(
    ("pretrain", "layout", "backbone", "message"),
    [
        ("steps = 1", "torchgeo-ssl4eo-s12", "wave_resnet18", "without `wave_`"),
        ("steps = 1", "torchgeo-ssl4eo-s12", "spec_resnet18", "is of a resnet18, not of a spec_"),
        ("steps = 1", "spectral-earth", "resnet18", "takes its 202 bands, all"),
        ("steps = 1", "ssl4eo-l-oli-sr", "resnet18", "bands are: SR_B1"),
        ("steps = 1\ncrop_px = 32", "torchgeo-ssl4eo-s12", "resnet18", "64 pixels or more, not 32"),
        ("steps = 1", "ssl4eo-s12-moco", "resnet18", "has no 'state_dict'"),
    ],
)
def test_weights_that_do_not_fit_the_recipe_are_refused(
    folder, pretrain, layout, backbone, message
):
    file_of("torchgeo-ssl4eo-s12", "resnet18", folder)
    with pytest.raises(RecipeError, match=message):
        run_pretrain(
            recipe(folder, pretrain, layout, backbone), open_store(folder / "root"), device="cpu"
        )


def test_no_steps_without_weights_is_no_recipe(tmp_path):
    path = tmp_path / "recipe.toml"
    text = RECIPE.format(layout="x", backbone="resnet18", pretrain="steps = 0")
    path.write_text("\n".join(line for line in text.splitlines() if "weights" not in line))
    with pytest.raises(RecipeError, match="`steps` is 0"):
        load_recipe(path)

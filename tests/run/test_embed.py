"""Features of every patch, in pieces that are never made twice, with the model's digest."""

from __future__ import annotations

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.errors import RecipeError
from pipeline.pretrain import checkpoint
from pipeline.pretrain.encoders.backbones import EncoderShape, build_encoder
from pipeline.pretrain.model import Model
from pipeline.recipe import Pretrain
from pipeline.run import embed
from pipeline.run.embed import run_embed
from pipeline.run.export import run_export
from pipeline.store.reader import open_dataset
from pipeline.store.tables import read_table

SHAPE = EncoderShape("small", 4, 8, 4)


@pytest.fixture
def saved(published) -> Model:
    dataset = open_dataset(published.store)
    reader = dataset.patches("image")
    mean, std, _ = dataset.statistics("image")
    model = Model(
        name="mine",
        dataset=dataset.version.name,
        identity=dataset.version.identity,
        version=dataset.version.number,
        digest=dataset.version.dataset_digest,
        product="image",
        bands=reader.bands,
        wavelength_nm=reader.wavelength_nm,
        mean=tuple(mean.tolist()),
        std=tuple(std.tolist()),
        fill=float(reader.fill),
        shape=SHAPE,
        settings=Pretrain(backbone="small"),
        step=3,
    )
    return checkpoint.save(published.store, model, build_encoder(SHAPE, seed=1), {}, "")


def rows(published, report):
    keys = [key for key in published.store.list(report.folder) if key.endswith(".parquet")]
    return [read_table(published.store, key) for key in keys]


def test_every_patch_has_the_features_of_its_pixels(published, saved):
    report = run_embed(published.recipe(), published.store, model="mine", device="cpu")
    (table,) = rows(published, report)
    reader = open_dataset(published.store).patches("image")
    for name in ("location", "slot", "acquired", "pixel_digest", "geometry"):
        assert table[name].equals(reader.rows[name])
    bands, mask = reader.read([5])
    seen = (bands != -32768) & (mask[:, None] != 0)
    mean, std = (np.array(v).reshape(-1, 1, 1) for v in (saved.mean, saved.std))
    image = torch.from_numpy(np.where(seen, (bands - mean) / std, 0).astype("float32"))
    encoder = checkpoint.load_encoder(published.store, saved)
    with torch.inference_mode():
        # Half the pixels: each is the mean of two by two, bilinearly.
        wanted = encoder(torch.nn.functional.avg_pool2d(image, 2))[0]
    np.testing.assert_allclose(table["features"][5].as_py(), wanted.numpy(), rtol=1e-4, atol=1e-5)


def test_it_is_geoparquet_with_the_models_digest(published, saved):
    report = run_embed(published.recipe(), published.store, model="mine", dtype="float16")
    path = next((published.folder / "root" / report.folder).glob("*.parquet"))
    schema = pq.read_schema(path)
    assert json.loads(schema.metadata[b"geo"])["primary_column"] == "geometry"
    origin = json.loads(schema.metadata[b"terrashard"])
    assert origin["weights_sha256"] == saved.weights_sha256
    assert origin["pretrained_on"] == saved.digest
    assert (origin["product"], origin["bands"]) == ("image", list(saved.bands))
    assert str(schema.field("features").type.value_type) == "halffloat"
    stated = json.loads(published.store.get(f"{report.folder}.json"))
    assert stated["patches"] == report.patches == len(pq.read_table(path))


def test_halves_are_the_floats_rounded(published, saved):
    tables = [
        rows(published, run_embed(published.recipe(), published.store, model="mine", dtype=dtype))
        for dtype in ("float32", "float16")
    ]
    full, half = (np.stack(t[0]["features"].to_numpy(zero_copy_only=False)) for t in tables)
    assert (half == full.astype("float16")).all()


def test_an_interrupted_run_goes_on_where_it_stopped(published, saved, monkeypatch):
    monkeypatch.setattr(embed, "PIECE", 10)
    whole = run_embed(published.recipe(), published.store, model="mine")
    assert whole.made == whole.pieces == -(-whole.patches // 10) > 2
    before = {k: published.store.get(k) for k in published.store.list(whole.folder)}
    gone = [key for key in before if key.endswith("00001.parquet")]
    for key in gone:
        published.store.delete(key)
    again = run_embed(published.recipe(), published.store, model="mine")
    assert again.made == 1
    assert {k: published.store.get(k) for k in published.store.list(whole.folder)} == before


def test_other_bands_and_other_types_are_refused(published, saved):
    other = saved.model_copy(update={"name": "other", "bands": ("d", "c", "b", "a")})
    checkpoint.save(published.store, other, build_encoder(SHAPE, seed=1), {}, "")
    with pytest.raises(RecipeError, match=r"d, c, b, a.*has a, b, c, d"):
        run_embed(published.recipe(), published.store, model="other")
    with pytest.raises(RecipeError, match="'int8'"):
        run_embed(published.recipe(), published.store, model="mine", dtype="int8")
    with pytest.raises(RecipeError, match="no model 'none'"):
        run_embed(published.recipe(), published.store, model="none")


def test_a_card_lies_beside_the_weights_and_leaves_with_them(published, saved):
    key = "models/mine/step-00000003/README.md"
    assert saved.weights_sha256 in published.store.get(key).decode()
    checkpoint.drop(published.store, "mine", 3)
    assert list(published.store.list("models")) == []


def test_the_command_exports_the_newest_checkpoint(published, saved, tmp_path):
    report = run_export(published.recipe(), published.store, tmp_path / "out", model="mine")
    assert report.files == "README.md config.json model.safetensors"
    assert report.weights_sha256 == saved.weights_sha256
    assert saved.weights_sha256 in (tmp_path / "out/README.md").read_text()

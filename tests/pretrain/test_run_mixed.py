"""One encoder learns from two sensors, whose patches differ in bands and size."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from pipeline.errors import IntegrityError, RecipeError
from pipeline.pretrain import checkpoint
from pipeline.pretrain.choice import build_method
from pipeline.pretrain.data.augment import resize
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.data.order import InTurn, pairs_of_products
from pipeline.pretrain.encoders.wavelength import aim
from pipeline.pretrain.export import load_folder
from pipeline.pretrain.train import train
from pipeline.recipe import load_recipe
from pipeline.run import pretrain
from pipeline.run.describe import describe, quantities_of, sensor_of
from pipeline.run.embed import run_embed
from pipeline.run.export import run_export
from pipeline.run.pretrain import run_pretrain
from pipeline.run.simulate import simulate_shards
from pipeline.run.trained import open_trained
from pipeline.store.objects import open_store
from pipeline.store.reader import open_dataset
from pipeline.store.tables import read_table

RECIPE = """
name = "two-sensors"
sample = {{ strategy = "grid", region = [15.0, 51.0, 15.1, 51.1] }}
cell = {{ lattice = "enmap30", size_px = 16 }}
slots = {{ kind = "months", start = 2023-04-01, end = 2023-06-01 }}
split = {{ block_km = 1, train = 1.0, val = 0.0, test = 0.0 }}

[[product]]
id = "enmap-l2a"
provider = "simulated"

[[product]]
id = "sentinel-2-l2a"
provider = "simulated"
bands = ["B04", "B08", "B11"]

[[product]]
id = "landsat-oli-sr"
provider = "simulated"

[pretrain]
{pretrain}
backbone = "{backbone}"
product = "enmap-l2a"
more_products = ["sentinel-2-l2a"]
batch_size = 4
patch_px = 8
queue = 8
steps = {steps}
checkpoint_every = 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mixed")


def recipe(folder, pretrain='method = "moco"', backbone="wave_vit_tiny", steps=3):
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(pretrain=pretrain, backbone=backbone, steps=steps))
    return load_recipe(path)


@pytest.fixture(scope="module")
def root(folder):
    store = open_store(folder / "root")
    simulate_shards(store, recipe(folder), locations=4)
    return store


def test_a_mixed_run_learns_resumes_and_its_encoder_takes_both(folder, root):
    report = run_pretrain(recipe(folder), root, name="mixed", device="cpu")
    assert report.steps == 3
    model = checkpoint.load(root, "mixed")
    assert [sensor.product for sensor in model.shape.sensors] == ["enmap-l2a", "sentinel-2-l2a"]
    assert model.shape.sensors[1].fwhm_nm == (30, 105, 90)
    encoder = checkpoint.load_encoder(root, model)
    assert encoder(torch.zeros(2, 202, 16, 16)).shape == (2, 192)
    aim(encoder, "sentinel-2-l2a")
    assert encoder(torch.zeros(2, 3, 16, 16)).shape == (2, 192)
    checkpoint.drop(root, "mixed", 3)
    again = run_pretrain(recipe(folder), root, name="mixed", device="cpu")
    assert (again.resumed_from, again.loss) == (2, report.loss)


def test_a_run_changes_physical_values_of_each_product(folder, root, monkeypatch):
    seen = {}

    def watch(run, batches, *, normalisers, **more):
        seen.update(normalisers)
        train(run, batches, normalisers=normalisers, **more)

    monkeypatch.setattr(pretrain, "train", watch)
    asked = 'method = "moco"\ncrop_area = [0.5, 1.0]\nintensity = { brightness = 0.4, grey = 0.2 }'
    run_pretrain(recipe(folder, asked), root, name="changed", device="cpu")
    for product, bands in (("enmap-l2a", 202), ("sentinel-2-l2a", 3)):
        found = seen[product].quantities
        torch.testing.assert_close(found.scale, torch.full((bands, 1, 1), 1e-4))
        assert not found.offset.any()
    landsat = quantities_of(open_dataset(root).patches("landsat-oli-sr"))
    assert landsat.offset.unique().item() == pytest.approx(-0.2)


def features(root, report):
    (key,) = [key for key in root.list(report.folder) if key.endswith(".parquet")]
    return np.stack(read_table(root, key)["features"].to_numpy(zero_copy_only=False))


def test_every_product_is_seen_with_its_own_standardisation(folder, root):
    loaded, dataset = recipe(folder), open_dataset(root)
    run_pretrain(loaded, root, name="each", device="cpu")
    model = checkpoint.load(root, "each")
    assert [*model.inputs] == ["enmap-l2a", "sentinel-2-l2a"]
    for product in ("enmap-l2a", "sentinel-2-l2a", "landsat-oli-sr"):
        report = run_embed(loaded, root, model="each", product=product, device="cpu")
        stated = json.loads(root.get(f"{report.folder}.json"))
        assert stated["new_product"] == (product not in model.inputs)
        mean, std, _ = dataset.statistics(product)
        reader, facts = dataset.patches(product), loaded.products[product]
        shape = model.shape
        if product not in model.inputs:
            shape = replace(shape, sensors=(*shape.sensors, sensor_of(reader, facts)))
        encoder = checkpoint.load_encoder(root, model, shape)
        aim(encoder, product)
        view = Normaliser(mean, std, reader.fill)(*map(torch.from_numpy, reader.read(slice(None))))
        with torch.inference_mode():
            wanted = encoder(resize(view, 16).image).numpy()
        np.testing.assert_allclose(features(root, report), wanted, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("backbone", ["vit_tiny", "wave_vit_tiny"])
def test_both_encoders_of_two_are_kept_and_chosen_by_their_product(folder, root, backbone):
    pretrain = 'method = "decur"\nprojector_width = 8'
    loaded, name = recipe(folder, pretrain, backbone), f"two-{backbone}".replace("_", "-")
    assert run_pretrain(loaded, root, name=name, device="cpu").steps == 3
    model, dataset = checkpoint.load(root, name), open_dataset(root)
    state, _ = checkpoint.load_state(root, model)
    for product, key in (("enmap-l2a", "encoder."), ("sentinel-2-l2a", "second_encoder.")):
        faced = model.facing(product)
        trained = {k.removeprefix(key): v for k, v in state["method"].items() if k.startswith(key)}
        encoder = checkpoint.load_encoder(root, faced)
        weights = encoder.state_dict()
        assert weights.keys() == trained.keys()
        assert all(torch.equal(weights[k], trained[k]) for k in weights)

        report = run_embed(loaded, root, model=name, product=product, device="cpu")
        stated = json.loads(root.get(f"{report.folder}.json"))
        assert stated["weights_sha256"] == faced.weights_sha256
        assert stated["own_product"] == (product == "enmap-l2a")
        assert stated["new_product"] is False
        mean, std, _ = dataset.statistics(product)
        reader = dataset.patches(product)
        if backbone.startswith("wave"):
            aim(encoder, product)
        view = Normaliser(mean, std, reader.fill)(*map(torch.from_numpy, reader.read(slice(None))))
        with torch.inference_mode():
            wanted = encoder(resize(view, 16).image).numpy()
        np.testing.assert_allclose(features(root, report), wanted, rtol=1e-3, atol=1e-4)
    assert model.weights_sha256 != model.second_sha256
    key = f"models/{name}/step-00000003/weights.sentinel-2-l2a.safetensors"
    root.put(key, root.get(key)[:-1] + b"x")
    with pytest.raises(IntegrityError, match=r"weights\.sentinel-2-l2a.* digest"):
        checkpoint.load_encoder(root, model.facing("sentinel-2-l2a"))
    checkpoint.drop(root, name, 3)
    assert not [k for k in root.list(f"models/{name}") if "step-00000003" in k]


def test_either_encoder_of_two_is_exported(folder, root, tmp_path):
    loaded = recipe(folder, 'method = "decur"\nprojector_width = 8', "vit_tiny")
    run_pretrain(loaded, root, name="out", device="cpu")
    model = checkpoint.load(root, "out")
    for product, bands in (("enmap-l2a", 202), ("sentinel-2-l2a", 3)):
        report = run_export(loaded, root, tmp_path / product, model="out", product=product)
        assert report.product == product
        assert report.weights_sha256 == model.facing(product).weights_sha256
        encoder = load_folder(tmp_path / product)
        assert encoder(torch.zeros(1, bands, 16, 16)).shape == (1, 192)
        about = json.loads((tmp_path / product / "config.json").read_text())["terrashard"]
        assert (about["product"], len(about["mean"])) == (product, bands)
        assert f"An encoder of {product} images" in (tmp_path / product / "README.md").read_text()
    with pytest.raises(RecipeError, match="no encoder of its own for 'landsat-oli-sr'"):
        run_export(loaded, root, tmp_path / "none", model="out", product="landsat-oli-sr")


def test_the_untrained_one_beside_the_second_encoder_is_what_it_began_with(folder, root):
    loaded = recipe(folder, 'method = "decur"\nprojector_width = 8', "vit_tiny")
    run_pretrain(loaded, root, name="begun", device="cpu")
    model, dataset = checkpoint.load(root, "begun"), open_dataset(root)
    for product in model.encoders:
        faced = open_trained(loaded, root, dataset, model, product, torch.device("cpu"))
        second = None if model.second is None else model.second.shape
        method = build_method(model.settings, model.shape, second=second)
        began = method.encoder if product == model.product else method.second_encoder
        for mine, its in zip(faced.untrained().parameters(), began.parameters(), strict=True):
            assert torch.equal(mine, its)


def test_a_product_that_a_model_has_no_weights_for_is_refused(folder, root):
    loaded = recipe(folder, 'method = "decur"\nprojector_width = 8', "vit_tiny")
    run_pretrain(loaded, root, name="two", device="cpu")
    with pytest.raises(
        RecipeError, match=r"learned from enmap-l2a, sentinel-2-l2a and not from landsat-oli-sr"
    ):
        run_embed(loaded, root, model="two", product="landsat-oli-sr", device="cpu")
    with pytest.raises(RecipeError, match="'modis' is no image product"):
        run_embed(loaded, root, model="two", product="modis", device="cpu")


@pytest.mark.parametrize(
    ("pretrain", "backbone", "message"),
    [
        ('method = "moco"', "vit_tiny", "cannot take"),
        ('method = "mae"', "wave_vit_tiny", "one product"),
        ('method = "moco"\npairs = "products"', "vit_tiny", "cannot take"),
        (
            "intensity_of = { landsat-oli-sr = {} }",
            "wave_vit_tiny",
            "'landsat-oli-sr', which is not",
        ),
        ('method = "swav"\npairs = "products"', "wave_vit_tiny", "which swav does not"),
        ('method = "moco"\npairs = "products"\njoint = true', "wave_vit_tiny", "several products"),
    ],
)
def test_what_cannot_be_mixed_is_refused(folder, root, pretrain, backbone, message):
    with pytest.raises(RecipeError, match=message):
        run_pretrain(recipe(folder, pretrain, backbone), root, device="cpu")


PAIRED = {
    "moco": "",
    "mocov3": "projector_width = 8",
    "simclr": "",
    "simsiam": "projector_width = 8",
    "barlow": "projector_width = 8",
    "dino": "prototypes = 16\nlocal_crops = 2",
}


@pytest.mark.parametrize("method", PAIRED)
def test_two_products_of_a_place_are_the_views_of_one_encoder(folder, root, method, monkeypatch):
    """Both kinds of patch go through it in every step, and a resumed run is an undisturbed one."""
    seen = []

    def looked(run, batches, **how):
        def noted():
            for batch in batches:
                seen.append([(stored.product, stored.bands.shape[1]) for stored in batch])
                yield batch

        return train(run, noted(), **how)

    monkeypatch.setattr(pretrain, "train", looked)
    more = f'method = "{method}"\npairs = "products"\nstop_collapsed = false\n{PAIRED[method]}'
    loaded = recipe(folder, more)
    report = run_pretrain(loaded, root, name=f"pairs-{method}", device="cpu")
    one, other = ("enmap-l2a", 202), ("sentinel-2-l2a", 3)
    assert seen == [[one, other], [other, one], [one, other]], "each is first in turn"
    whole = checkpoint.load(root, report.model)
    assert set(whole.inputs) == {"enmap-l2a", "sentinel-2-l2a"}
    state, log = checkpoint.load_state(root, whole)
    checkpoint.drop(root, report.model, 3)
    run_pretrain(loaded, root, name=f"pairs-{method}", device="cpu")
    again = checkpoint.load(root, report.model)
    assert again.step == 3
    resumed, resumed_log = checkpoint.load_state(root, again)
    torch.testing.assert_close(resumed, state, rtol=0, atol=0)
    assert resumed_log == log


def test_a_place_s_own_products_are_paired(folder, root):
    dataset = open_dataset(root)
    readers = {p: dataset.patches(p) for p in ("enmap-l2a", "sentinel-2-l2a")}
    picks = InTurn(pairs_of_products(readers, batch_size=4, seed=0))
    for step in range(4):
        first, second = picks.picks(step)
        assert first.product != second.product
        rows = [readers[pick.product].rows.take(pick.numbers) for pick in (first, second)]
        for column in ("location", "slot"):
            assert rows[0][column].to_pylist() == rows[1][column].to_pylist()


@pytest.mark.parametrize("method", ["moco", "dino"])
def test_memories_of_a_pair_are_of_their_own_product(folder, root, method):
    """MoCo's keys are of the second view; each of DINO's centres moves with its own views."""
    more = f'method = "{method}"\npairs = "products"\nstop_collapsed = false\n{PAIRED[method]}'
    loaded = recipe(folder, more, steps=1)
    described = describe(loaded, open_dataset(root))
    begun = build_method(described.settings, described.shape)
    name = run_pretrain(loaded, root, name=f"one-step-{method}", device="cpu").model
    state, _ = checkpoint.load_state(root, checkpoint.load(root, name))
    kind = {"moco": "queue", "dino": "centre"}[method]
    moved = [
        not torch.equal(old, new)
        for old, new in zip(getattr(begun, kind), state["method"][kind], strict=True)
    ]
    assert moved == ([False, True] if method == "moco" else [True, True])


LABELLED = """
name = "labelled"
sample = { strategy = "grid", region = [15.0, 51.0, 15.1, 51.1] }
cell = { lattice = "s2r10", size_px = 48 }
slots = { kind = "months", start = 2023-04-01, end = 2023-05-01 }
split = { block_km = 1, train = 0.5, val = 0.5, test = 0.0 }

[[product]]
id = "sentinel-2-l2a"
provider = "simulated"
bands = ["B04", "B08", "B11"]

[[product]]
id = "landsat-oli-sr"
provider = "simulated"

[[product]]
id = "simulated-labels"
provider = "simulated"

[pretrain]
backbone = "wave_vit_tiny"
more_products = ["landsat-oli-sr"]
batch_size = 4
patch_px = 8
crop_px = 16
queue = 8
steps = 4
health_every = 1
knn_every = 1

[evaluate]
labels = "simulated-labels"
window_px = 24
min_label_fraction = 0.3
"""


def test_features_are_checked_on_the_models_own_product_whatever_the_batch_was_of(tmp_path):
    (tmp_path / "recipe.toml").write_text(LABELLED)
    loaded, store = load_recipe(tmp_path / "recipe.toml"), open_store(tmp_path / "root")
    simulate_shards(store, loaded, locations=24)
    report = run_pretrain(loaded, store, device="cpu")
    log = store.get(f"models/{report.model}/step-00000004/log.csv").decode().splitlines()
    assert all(0 <= float(line.rsplit(",", 1)[1]) <= 1 for line in log[1:])
    assert len(log) == 5

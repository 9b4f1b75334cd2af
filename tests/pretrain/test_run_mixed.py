"""One encoder learns from two sensors, whose patches differ in bands and size."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import RecipeError
from pipeline.pretrain import checkpoint
from pipeline.pretrain.wavelength import aim
from pipeline.recipe import load_recipe
from pipeline.run.pretrain import run_pretrain
from pipeline.run.simulate import simulate_shards
from pipeline.store.objects import open_store

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

[pretrain]
{pretrain}
backbone = "{backbone}"
product = "enmap-l2a"
more_products = ["sentinel-2-l2a"]
batch_size = 4
patch_px = 8
queue = 8
steps = 3
checkpoint_every = 2
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mixed")


def recipe(folder, pretrain='method = "moco"', backbone="wave_vit_tiny"):
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(pretrain=pretrain, backbone=backbone))
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


def test_two_encoders_of_any_sensor_begin_with_a_product_each(folder, root):
    pretrain = 'method = "decur"\nprojector_width = 8'
    report = run_pretrain(recipe(folder, pretrain), root, name="pairs", device="cpu")
    assert report.steps == 3


@pytest.mark.parametrize(
    ("pretrain", "backbone", "message"),
    [
        ('method = "moco"', "vit_tiny", "cannot take"),
        ('method = "mae"', "wave_vit_tiny", "one product"),
        ('method = "moco"\npairs = "products"', "wave_vit_tiny", "needs two encoders"),
    ],
)
def test_what_cannot_be_mixed_is_refused(folder, root, pretrain, backbone, message):
    with pytest.raises(RecipeError, match=message):
        run_pretrain(recipe(folder, pretrain, backbone), root, device="cpu")

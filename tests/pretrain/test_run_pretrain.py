"""From a recipe and a published version to a model."""

from __future__ import annotations

import csv
import io
from typing import get_args

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from pipeline.errors import RecipeError
from pipeline.pretrain import checkpoint
from pipeline.pretrain.data.dataset import PatchDataset
from pipeline.pretrain.data.order import Order
from pipeline.recipe import Pretrain
from pipeline.run.pretrain import run_pretrain
from pipeline.store.reader import open_dataset

EVALUATE = {"labels": "labels", "window_px": 8}
SHORT = {"backbone": "small", "steps": 1, "batch_size": 4, "crop_px": 8, "patch_px": 4, "queue": 8}


def test_a_masked_autoencoder_learns_and_its_encoder_can_be_loaded(published):
    pretrain = {**SHORT, "method": "mae", "backbone": "vit_tiny", "precision": "bf16"}
    report = run_pretrain(published.recipe(pretrain=pretrain), published.store, device="cpu")
    model = checkpoint.load(published.store, report.model)
    encoder = checkpoint.load_encoder(published.store, model)
    assert model.bands == ("a", "b", "c", "d")
    assert encoder(torch.zeros(2, 4, 8, 8)).shape == (2, 192)
    assert not encoder.training


EVERY = get_args(Pretrain.model_fields["method"].annotation)


@pytest.mark.parametrize("method", [name for name in EVERY if name not in ("mae", "data2vec")])
def test_another_method_is_one_line_of_the_recipe(method, published):
    pretrain = {**SHORT, "method": method, "steps": 3, "projector_width": 32}
    loaded = published.recipe(pretrain=pretrain, evaluate=EVALUATE)
    report = run_pretrain(loaded, published.store, device="cpu")
    model = checkpoint.load(published.store, report.model)
    encoder = checkpoint.load_encoder(published.store, model)
    assert report.model.startswith(f"{method}-small-v1-".replace("_", "-"))
    assert encoder(torch.zeros(2, 4, 8, 8)).shape[0] == 2


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"method": "decur", "pairs": "times"}, "two products"),
        ({"method": "decur", "more_products": ["labels"]}, "'labels'"),
        ({"method": "paws"}, "support_labels"),
        ({"method": "data2vec"}, "choose a ViT"),
        ({"knn_every": 1}, "evaluate.labels"),
    ],
)
def test_what_a_method_misses_is_named(wrong, message, published):
    with pytest.raises(RecipeError, match=message):
        run_pretrain(published.recipe(pretrain={**SHORT, **wrong}), published.store)


def test_features_are_checked_on_the_validation_part_and_change_nothing(published):
    short = {**SHORT, "steps": 4, "health_every": 1}
    logs = []
    for more in ({}, {"knn_every": 2}):
        loaded = published.recipe(pretrain={**short, **more}, evaluate=EVALUATE)
        report = run_pretrain(loaded, published.store, device="cpu")
        log = published.store.get(f"models/{report.model}/step-00000004/log.csv").decode()
        logs.append(list(csv.DictReader(io.StringIO(log))))
    plain, checked = logs
    assert [row["loss"] for row in plain] == [row["loss"] for row in checked]
    found = [float(row["knn_accuracy"]) for row in checked]
    assert np.isnan(found).tolist() == [True, False, True, False]
    assert 0 <= found[1] <= 1


def test_dino_stretches_the_positions_of_a_vit_over_small_crops(published):
    pretrain = {**SHORT, "method": "dino", "backbone": "vit_tiny", "patch_px": 2}
    report = run_pretrain(published.recipe(pretrain=pretrain), published.store, device="cpu")
    model = checkpoint.load(published.store, report.model)
    assert checkpoint.load_encoder(published.store, model)(torch.zeros(2, 4, 8, 8)).shape[1] == 192


def test_two_views_may_be_of_one_patch(published):
    pretrain = {**SHORT, "pairs": "views", "steps": 2}
    report = run_pretrain(published.recipe(pretrain=pretrain), published.store, device="cpu")
    assert report.steps == 2
    other = published.recipe(pretrain={**SHORT, "steps": 2})
    assert run_pretrain(other, published.store, device="cpu").loss != report.loss


def test_only_the_training_part_is_learned_from_unless_asked(published):
    inductive = run_pretrain(published.recipe(pretrain=SHORT), published.store)
    dataset = open_dataset(published.store)
    assert inductive.patches == len(dataset.sel(split="train").patches("image"))
    everything = {**SHORT, "transductive": True}
    transductive = run_pretrain(published.recipe(pretrain=everything), published.store)
    assert transductive.patches == len(dataset.patches("image"))
    assert transductive.transductive
    assert transductive.model != inductive.model
    assert 0 < transductive.paired_fraction < 1


def test_normalisation_is_that_of_the_training_part(published):
    run_pretrain(published.recipe(pretrain=SHORT), published.store, name="mine")
    model = checkpoint.load(published.store, "mine")
    reader = open_dataset(published.store).sel(split="train").patches("image")
    bands, _ = reader.read(slice(None))
    seen = np.where(bands == -32768, np.nan, bands.astype(float))
    np.testing.assert_allclose(model.mean, np.nanmean(seen, axis=(0, 2, 3)))
    np.testing.assert_allclose(model.std, np.nanstd(seen, axis=(0, 2, 3)))


def test_the_two_views_of_a_location_are_two_times_where_there_are_two(published):
    reader = open_dataset(published.store).patches("image")
    slot = np.array(reader.rows["slot"].to_pylist())
    location = np.array(reader.rows["location"].to_pylist())
    first, second = Order(reader.sample_row, views=2, batch_size=4, seed=0).epoch(0)
    assert (location[first] == location[second]).all()
    twice = np.array([(location == name).sum() == 2 for name in location[first]])
    assert ((slot[first] != slot[second]) == twice).all()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"crop_px": 17}, "have 16 pixels"),
        ({"product": "labels"}, "of kind `image`: image"),
        ({"product": "nothing"}, "'nothing'; allowed"),
        ({"method": "mae"}, "choose a ViT"),
        ({"backbone": "spec_vit_tiny"}, "75 bands"),
    ],
)
def test_a_wrong_recipe_is_explained(published, wrong, message):
    with pytest.raises(RecipeError, match=message):
        run_pretrain(published.recipe(pretrain={**SHORT, **wrong}), published.store)


def test_without_a_table_there_is_nothing_to_do(published):
    with pytest.raises(RecipeError, match=r"no \[pretrain\] table"):
        run_pretrain(published.recipe(), published.store)


def test_a_device_that_is_not_here_is_named(published):
    with pytest.raises(RecipeError, match="'tpu'"):
        run_pretrain(published.recipe(pretrain=SHORT), published.store, device="tpu")


def test_the_torch_data_set_gives_patches_alone_and_in_batches(published):
    root = published.folder / "root"
    patches = PatchDataset(root, "image", split="train")
    bands, mask = patches.reader.slow_read(3)
    assert (patches[3]["bands"].numpy() == bands).all()
    assert (patches[3]["mask"].numpy() == mask).all()
    batch = next(iter(DataLoader(patches, batch_size=5)))
    assert batch["bands"].shape == (5, 4, 16, 16)
    assert batch["location"] == patches.reader.rows["location"].to_pylist()[:5]
    with pytest.raises(RecipeError, match="holdout"):
        PatchDataset(root, "image", split="holdout")

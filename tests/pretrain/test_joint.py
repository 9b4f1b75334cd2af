"""Images of all products at once: what is hidden leaves no trace, what is left is itself."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import RecipeError
from pipeline.pretrain import checkpoint
from pipeline.pretrain.data.augment import Augmentation, Crop, regrid
from pipeline.pretrain.data.batches import Share, Stored
from pipeline.pretrain.data.joint import Joint, join_sensors
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.encoders.backbones import EncoderShape, build_encoder
from pipeline.pretrain.encoders.wavelength import Sensor, aim
from pipeline.pretrain.methods.method import View
from pipeline.recipe import load_recipe
from pipeline.run.pretrain import run_pretrain
from pipeline.run.simulate import simulate_shards
from pipeline.store.objects import open_store

FILL = -32768
SENSORS = (
    Sensor("fine", ("a", "b", "c"), (450.0, 550.0, 660.0), (20.0, 20.0, None)),
    Sensor("coarse", ("x", "vv"), (850.0, None), (30.0, None)),
)
NORMALISERS = {
    "fine": Normaliser([50.0] * 3, [30.0, 20.0, 10.0], FILL),
    "coarse": Normaliser([40.0] * 2, [25.0] * 2, FILL),
}
CROPS = [Crop(0, Augmentation(8, blur=1.0)), Crop(1, Augmentation(8))]


def batch(seed=0, count=4):
    random = torch.Generator().manual_seed(seed)

    def pixels(product, bands, size_px):
        values = torch.randint(0, 100, (count, bands, size_px, size_px), generator=random).short()
        values[torch.rand(values.shape, generator=random) < 0.1] = FILL
        mask = (torch.rand(count, size_px, size_px, generator=random) > 0.2).to(torch.uint8)
        return Stored(values, mask, product)

    return tuple(pixels(*what) for _ in range(2) for what in (("fine", 3, 12), ("coarse", 2, 4)))


def joint(dropout):
    return Joint(SENSORS, 12, dropout)


def views(of, batch, share=Share()):  # noqa: B008 - it cannot change
    return of.make_views(batch, CROPS, NORMALISERS, torch.Generator().manual_seed(1), share)


@pytest.mark.parametrize("dropout", [0.0, 0.2, 0.7])
@pytest.mark.parametrize("products", [2, 3])
def test_views_lack_products_at_the_stated_rate_and_none_lacks_all(dropout, products):
    one = Joint(tuple(SENSORS[0] for _ in range(products)), 8, dropout)
    keep = one.draw(20_000, torch.Generator().manual_seed(0))
    assert keep.any(dim=1).all()
    lacks = ~keep.all(dim=1)
    assert float(lacks.float().mean()) == pytest.approx(dropout, abs=0.015)
    if dropout:
        parts, counts = keep[lacks].unique(dim=0, return_counts=True)
        assert len(parts) == 2**products - 2
        assert float(counts.max() / counts.min()) < 1.2


def test_what_is_hidden_changes_no_bit_of_loss_or_gradient():
    shape = EncoderShape("wave_vit_tiny", 3, 8, 4, (*SENSORS, join_sensors(SENSORS)))
    draws = joint(0.7).draw(4, torch.Generator().manual_seed(1))
    assert (~draws).any()
    clean, dirty = batch(), batch()
    random = torch.Generator().manual_seed(9)
    # Of the first crop alone: the second draws anew, so its products are left as they are.
    for product, hidden in enumerate((~draws).unbind(dim=1)):
        junk = torch.randint(-999, 999, dirty[product].bands.shape, generator=random).short()
        dirty[product].bands[hidden] = junk[hidden]
        dirty[product].mask[hidden] ^= 1
    results = []
    for one in (clean, dirty):
        encoder = build_encoder(shape, seed=0)
        aim(encoder, "fine+coarse")
        view = views(joint(0.7), one)[0]
        loss = encoder(view.image).square().sum()
        loss.backward()
        gradients = [p.grad for p in encoder.parameters() if p.grad is not None]
        results.append([view.image, view.valid, loss.detach(), *gradients])
    assert len(results[0]) > 10
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)


@torch.inference_mode()
def test_what_is_left_has_the_features_of_that_product_alone():
    shape = EncoderShape("wave_vit_tiny", 3, 12, 4, (*SENSORS, join_sensors(SENSORS)))
    encoder = build_encoder(shape, seed=0).eval()
    one, generator = joint(0.9), torch.Generator().manual_seed(3)
    keep = one.draw(8, torch.Generator().manual_seed(3))
    given = batch(count=8)
    (view,) = one.make_views(given[:2], [Crop(0, None)], NORMALISERS, generator)
    for number, (sensor, stored) in enumerate(zip(SENSORS, given, strict=False)):
        alone = keep[:, number] & (keep.sum(dim=1) == 1)
        assert alone.any()
        aim(encoder, "fine+coarse")
        found = encoder(view.image[alone])
        own = NORMALISERS[sensor.product]
        image = own.standardise(regrid(own.convert(stored.bands, stored.mask), 12)).image
        aim(encoder, sensor.product)
        torch.testing.assert_close(found, encoder(image[alone]), rtol=1e-4, atol=1e-5)


def test_views_do_not_depend_on_how_many_processes_share_a_batch():
    whole = views(joint(0.5), batch())
    parts = []
    for rank in range(2):
        ours = Share(rank, 2).of(4)
        share = tuple(Stored(v.bands[ours], v.mask[ours], v.product) for v in batch())
        parts.append(views(joint(0.5), share, Share(rank, 2)))
    for number, view in enumerate(whole):
        assert torch.equal(torch.cat([part[number].image for part in parts]), view.image)


def test_a_coarser_grid_is_the_mean_of_what_was_seen():
    image = torch.arange(16.0).view(1, 1, 4, 4)
    valid = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    valid[..., 0, 0] = valid[..., 2:, 2:] = False
    found = regrid(View(torch.where(valid, image, 0.0), valid), 2)
    torch.testing.assert_close(found.image.flatten(), torch.tensor([10 / 3, 4.5, 10.5, 0.0]))
    assert found.valid.flatten().tolist() == [True, True, True, False]


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
backbone = "wave_vit_tiny"
product = "enmap-l2a"
more_products = ["sentinel-2-l2a"]
batch_size = 4
patch_px = 8
queue = 8
steps = 4
checkpoint_every = 2
{pretrain}
"""


def recipe(folder, pretrain):
    path = folder / "recipe.toml"
    path.write_text(RECIPE.format(pretrain=pretrain))
    return load_recipe(path)


def test_a_joint_run_resumes_with_the_bits_of_one_that_was_not_killed(tmp_path):
    loaded = recipe(tmp_path, 'method = "moco"\njoint = true\nmodality_dropout = 0.5')
    store = open_store(tmp_path / "root")
    simulate_shards(store, loaded, locations=4)
    whole = run_pretrain(loaded, store, name="whole", device="cpu")
    run_pretrain(loaded, store, name="killed", device="cpu")
    checkpoint.drop(store, "killed", 4)
    again = run_pretrain(loaded, store, name="killed", device="cpu")
    assert (again.resumed_from, again.loss) == (2, whole.loss)
    models = [checkpoint.load(store, name) for name in ("whole", "killed")]
    assert models[0].weights_sha256 == models[1].weights_sha256
    encoder = checkpoint.load_encoder(store, models[0])
    aim(encoder, "enmap-l2a+sentinel-2-l2a")
    assert encoder(torch.zeros(1, 205, 16, 16)).shape == (1, 192)
    plain = recipe(tmp_path, 'method = "moco"\njoint = true')
    assert run_pretrain(plain, store, device="cpu").loss != whole.loss


@pytest.mark.parametrize(
    ("pretrain", "message"),
    [
        ('method = "moco"\nmodality_dropout = 0.5', "needs `joint = true`"),
        ('method = "decur"\nmodality_dropout = 0.5', "neither can be missing"),
        ('method = "decur"\njoint = true', "one encoder several products"),
        ('method = "paws"', "labelled patches of one product"),
    ],
)
def test_what_cannot_be_joint_is_refused(tmp_path, pretrain, message):
    store = open_store(tmp_path / "root")
    simulate_shards(store, recipe(tmp_path, ""), locations=2)
    with pytest.raises(RecipeError, match=message):
        run_pretrain(recipe(tmp_path, pretrain), store, device="cpu")

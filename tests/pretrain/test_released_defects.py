"""Defects of released code that this code must not have, and the test that guards against each.

Where a test stands in another module, its own comment or name says the law; here is the list.

SpectralEarth
    The teacher's momentum reaches 1 after ten epochs of a hundred, and the teacher stands still:
    test_dino::test_the_teacher_follows_on_a_cosine_over_all_steps,
    test_dino::test_late_in_a_run_the_teacher_still_moves,
    test_mocov3::test_keys_follow_on_a_cosine_over_all_steps,
    test_data2vec::test_the_teacher_follows_straight_to_its_last_momentum.
DeCUR
    Both projectors are one: test_decur::test_projectors_and_encoders_share_no_weights.
    The correlation is divided by four times the batch, for four GPUs:
    test_decur::test_the_loss_does_not_depend_on_a_number_of_devices,
    test_ranks::test_a_method_over_two_ranks_equals_one_rank.
    AdamW whatever was asked for: test_decur::test_the_recipe_says_which_optimiser_is_used.
    448 common dimensions by default, of 8192: test_seven_eighths_of_the_dimensions_are_common.
    The attention of one modality is used for both: there is none here.
Review of Wang et al.
    Channel drop zeroes rows of the image:
    test_barlow_pixels::test_left_out_bands_are_whole_bands_of_a_window_and_about_as_many_as_said,
    test_intensity::test_whole_bands_are_left_out_one_to_so_many_and_never_all.
PAWS for hyperspectral images
    A rate of 0.5: test_paws_never_has_a_rate_that_adam_cannot_bear.
    The encoder is saved before the first step, so fine-tuning starts from random weights:
    test_what_is_kept_is_what_was_learned,
    ../evaluate/test_few_labels::test_fine_tuning_starts_from_the_encoder_it_is_given.
    The best test score of all epochs is reported:
    ../evaluate/test_few_labels::test_the_rate_is_chosen_on_the_validation_part_alone,
    ../evaluate/test_probes::test_the_strength_is_chosen_without_the_test_part.
    Augmentations are drawn once and stay: test_every_step_draws_its_own_views.
    Small crops are cut as the large ones:
    test_dino::test_large_crops_are_of_two_times_and_small_ones_of_both.
    Small crops are held to one target instead of the mean:
    test_paws::test_small_crops_are_held_to_the_mean_of_both_targets.
    Averaged bands lose their place: test_barlow_pixels::test_averaged_bands_keep_their_mean.
SSL4EO-S12
    Brightness and contrast wrap around at 8 bits: test_bright_values_do_not_wrap_around,
    test_brightness_and_contrast_keep_the_order_of_values_far_beyond_8_bits.
    The script of data2vec trains for 2 epochs: test_a_run_is_as_long_as_the_recipe_says.
    MoCo on one GPU learns from batch statistics that query and key share: its documentation says
    so, and its health is watched; test_monitors.
torchgeo
    BYOL's target shares the weights it should follow: test_a_follower_shares_no_weights.
    SimCLR collapsed while its loss fell:
    test_monitors::test_a_run_that_says_the_same_of_everything_is_stopped_unless_told_not_to.
    Standardised values are clipped to [0, 1] (kornia): test_standardised_values_are_not_clipped.
    Augmentation after standardisation:
    test_validity::test_standardising_after_the_crop_is_standardising_before_it.
kornia
    A crop in bfloat16 is off by up to 0.83 pixels: test_crops_are_the_same_whatever_the_precision.
lightly
    The queue is not in the state:
    test_resume::test_four_steps_and_four_resumed_end_with_the_bits_of_eight.
    It holds vectors of any length, and moves twice a step:
    test_moco::test_the_queue_holds_unit_keys_moves_once_a_step_and_forgets_the_oldest.
    Ranks have queues of their own: test_ranks::test_ranks_agree_on_weights_queues_and_centres.
    Barlow Twins takes local moments: test_ranks::test_barlow_twins_over_two_ranks_equals_one_rank.
timm
    The kernel of three bands is tiled over many:
    test_backbones::test_bands_do_not_share_a_tiled_kernel.
Evaluations
    Micro averages are called class means:
    ../evaluate/test_probes::test_accuracy_by_hand_and_by_scikit_learn.
    Windows of one place stand in two parts:
    ../evaluate/test_windows::test_no_location_stands_in_two_parts.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from pydantic import ValidationError

from pipeline.pretrain import checkpoint
from pipeline.pretrain.choice import build_method, crops_of
from pipeline.pretrain.data.batches import Stored
from pipeline.pretrain.data.intensity import Quantities, change_intensity
from pipeline.pretrain.data.normalise import Normaliser
from pipeline.pretrain.data.views import make_views
from pipeline.pretrain.encoders.backbones import EncoderShape, build_encoder
from pipeline.pretrain.encoders.spectra import gain_and_noise
from pipeline.pretrain.methods.method import View
from pipeline.recipe import Intensity, Pretrain
from pipeline.run.pretrain import run_pretrain


def test_every_test_that_is_named_here_exists():
    here = Path(__file__)
    named = re.findall(r"(?:([\w./]+)::)?(test_\w{15,})", __doc__)
    assert len(named) > 30
    for module, name in named:
        path = here if not module else here.parent / f"{module}.py"
        assert f"\ndef {name}(" in path.read_text(), f"{path.name} has no {name}"


def test_seven_eighths_of_the_dimensions_are_common():
    settings = Pretrain(method="decur", projector_width=64)
    shape = EncoderShape("resnet18", 3, 16, 4)
    assert build_method(settings, shape, second=shape).common == 56
    assert settings.common_fraction * 8192 == 7168


def test_paws_never_has_a_rate_that_adam_cannot_bear(tiny_run):
    run = tiny_run("paws", warmup_steps=0, batch_size=256).run
    assert type(run.optimizer).__name__ == "Lars"
    assert all(group["lr"] <= 0.4 for group in run.optimizer.param_groups)
    with pytest.raises(ValidationError, match="`learning_rate`"):
        tiny_run("paws", optimizer="adamw")


@pytest.mark.parametrize("method", ["paws", "dino"])
def test_what_is_kept_is_what_was_learned(method, published):
    settings = {"method": method, "backbone": "small", "steps": 2, "batch_size": 4, "crop_px": 8}
    settings |= {"teacher_momentum": 0.5, "warmup_steps": 0}
    evaluate = {"labels": "labels", "window_px": 8}
    loaded = published.recipe(pretrain=settings, evaluate=evaluate)
    name = run_pretrain(loaded, published.store, device="cpu").model
    model = checkpoint.load(published.store, name)
    kept = checkpoint.load_encoder(published.store, model).state_dict()
    trained = checkpoint.load_state(published.store, model)[0]["method"]
    begun = build_encoder(model.shape, seed=model.settings.seed).state_dict()
    for key, value in kept.items():
        assert torch.equal(value, trained[f"encoder.{key}"])
    assert not torch.equal(kept["conv1.weight"], begun["conv1.weight"])


def test_every_step_draws_its_own_views(tiny_run, monkeypatch):
    seen = []
    tiny = tiny_run("simclr", batch_size=4)
    batch = tuple(next(tiny._batches()))
    monkeypatch.setattr(tiny, "_batches", lambda: iter([batch] * 3))
    forward = tiny.run.method.forward

    def watch(views, generator):
        seen.append(views[0].image.clone())
        return forward(views, generator)

    monkeypatch.setattr(tiny.run.method, "forward", watch)
    tiny.go_on(3)
    assert len(seen) == 3
    assert not any(torch.equal(seen[0], other) for other in seen[1:])


def test_bright_values_do_not_wrap_around():
    """Brighter stays brighter, from the least stored value to the largest, far beyond 8 bits."""
    ramp = torch.linspace(-32767, 32767, 12).short().repeat(1, 1, 12, 1)
    normaliser = Normaliser([0.0], [100.0], -32768)
    mask = torch.ones(1, 12, 12, dtype=torch.uint8)
    whole = normaliser(ramp, mask).image
    assert (whole.diff(dim=3) > 0).all()
    assert whole.amax() == pytest.approx(327.67)
    view = normaliser(ramp, mask)
    louder = gain_and_noise(view, torch.Generator().manual_seed(0)).image
    assert (louder.diff(dim=3) > 0).all()


def test_brightness_and_contrast_keep_the_order_of_values_far_beyond_8_bits():
    """Nothing is cast to integers, wraps around, or is clipped to the range of an image."""
    ramp = torch.linspace(-32000, 32000, 144).view(1, 1, 12, 12).expand(64, 1, 12, 12)
    view = View(ramp.clone(), torch.ones(64, 1, 12, 12, dtype=torch.bool))
    asked = Intensity(brightness=0.4, contrast=0.4, probability=1.0)
    out = change_intensity(view, asked, Quantities("1", 1e-4), torch.Generator().manual_seed(0))
    assert (out.image.flatten(1).diff(dim=1) > 0).all()
    ends = out.image.flatten(1)[:, [0, -1]].abs()
    assert ends.amax() > 1.5 * 32000
    assert ends.amin() < 0.5 * 32000


@pytest.mark.parametrize("steps", [3, 5])
def test_a_run_is_as_long_as_the_recipe_says(steps, tiny_run):
    tiny = tiny_run("data2vec", steps=steps)
    tiny.go_on(steps)
    assert tiny.kept == [steps]
    method = tiny.run.method
    assert method.momentum(steps - 1) == pytest.approx(0.9998)
    assert method.momentum(steps - 2) < 0.9998


@pytest.mark.parametrize(
    ("method", "pairs"),
    [
        ("moco", ("encoder key_encoder", "head key_head")),
        ("mocov3", ("encoder key_encoder", "projector key_projector")),
        ("dino", ("student encoder", "student_head head")),
        ("data2vec", ("encoder teacher",)),
    ],
)
def test_a_follower_shares_no_weights(method, pairs, tiny_run):
    built = tiny_run(method).run.method
    optimised = {
        p.data_ptr()
        for group in tiny_run(method).run.optimizer.param_groups
        for p in group["params"]
    }
    for pair in pairs:
        leader, follower = (getattr(built, name) for name in pair.split())
        mine = {value.data_ptr() for value in leader.state_dict().values()}
        assert mine.isdisjoint(value.data_ptr() for value in follower.state_dict().values())
        assert not any(p.requires_grad for p in follower.parameters())
        assert optimised.isdisjoint(p.data_ptr() for p in follower.parameters())


@pytest.mark.parametrize("changed", [{}, {"brightness": 0.4, "contrast": 0.4}])
@pytest.mark.parametrize("method", ["moco", "dino", "mae"])
def test_standardised_values_are_not_clipped(method, changed):
    random = torch.Generator().manual_seed(0)
    bands = (1000 + 300 * torch.randn(8, 3, 16, 16, generator=random)).short()
    stored = Stored(bands, torch.ones(8, 16, 16, dtype=torch.uint8), "image")
    shape = EncoderShape("vit_tiny", 3, 16, 4)
    asked = Pretrain(method=method, local_crops=0, intensity=changed)
    crops = crops_of(asked, shape, patches=1)[:1]
    normalisers = {"image": Normaliser([1000.0] * 3, [300.0] * 3, -32768)}
    (view,) = make_views((stored,), crops, normalisers, random)
    assert view.image.amin() < -1
    assert view.image.amax() > 1
    outside = ((view.image < 0) | (view.image > 1)).float().mean()
    assert outside > 0.4  # of a normal distribution 66 % lie there; blur and crop take of its width


@pytest.mark.parametrize("method", ["simclr", "dino"])
def test_crops_are_the_same_whatever_the_precision(method, tiny_run, monkeypatch):
    seen = {}
    for precision in ("fp32", "bf16"):
        tiny = tiny_run(method, precision=precision)
        forward = tiny.run.method.forward

        def watch(views, generator, forward=forward, precision=precision):
            seen[precision] = [view.image for view in views]
            return forward(views, generator)

        monkeypatch.setattr(tiny.run.method, "forward", watch)
        tiny.go_on(1)
    for one, other in zip(seen["fp32"], seen["bf16"], strict=True):
        assert one.dtype == torch.float32
        assert torch.equal(one, other)

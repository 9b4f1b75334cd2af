"""DINO: its loss by hand and by lightly's, its teacher over all steps, its centre, its crops."""

from __future__ import annotations

import math

import pytest
import torch
from lightly.loss import DINOLoss
from lightly.models.modules import DINOProjectionHead
from lightly.utils.scheduler import cosine_schedule
from torch import nn

from pipeline.errors import RecipeError
from pipeline.pretrain.choice import build_method, crops_of
from pipeline.pretrain.encoders.backbones import EncoderShape, build_encoder
from pipeline.pretrain.methods.dino import DINO, Head, Schedule, dino_loss
from pipeline.recipe import Pretrain

STEPS = 100


def schedule(steps=STEPS, momentum=0.996, warmup_steps=0, frozen_steps=0):
    return Schedule(steps, momentum, 0.02, 0.04, warmup_steps, frozen_steps)


def dino(net, plan=None, prototypes=12):
    torch.manual_seed(1)
    return DINO(
        net(3),
        6,
        prototypes=prototypes,
        schedule=plan or schedule(),
        student_temperature=0.1,
        centre_momentum=0.9,
    )


def crops(view, count=4):
    large = [view(count, 3, seed=seed) for seed in range(2)]
    return large + [view(count, 3, size_px=5, seed=seed) for seed in range(2, 5)]


def learn(method, views, optimizer=None, *, step=0):
    method.begin(step)
    learned = method(views, torch.Generator())
    method.zero_grad()
    learned.loss.backward()
    for parameter in method.still():
        parameter.grad = None
    if optimizer is not None:
        optimizer.step()
    return learned


def test_the_loss_of_a_case_done_by_hand():
    # One item, two prototypes. Teacher: after the centre (0, 1), logits (0, 0) and (1, 0), at
    # temperature 1/2. Student: three crops at temperature 1, the last one small.
    teacher = torch.tensor([[[0.0, 1.0]], [[1.0, 1.0]]])
    student = torch.tensor([[[2.0, 0.0]], [[0.0, 0.0]], [[0.0, 1.0]]])
    even, sure = (0.5, 0.5), (1 / (1 + math.exp(-2)), 1 / (1 + math.exp(2)))

    def entropy(target, logits):
        total = math.log(sum(math.exp(logit) for logit in logits))
        return sum(t * (total - logit) for t, logit in zip(target, logits, strict=True))

    pairs = [(even, (0, 0)), (even, (0, 1)), (sure, (2, 0)), (sure, (0, 1))]
    wanted = sum(entropy(*pair) for pair in pairs) / 4
    found = dino_loss(
        student,
        teacher,
        torch.tensor([0.0, 1.0]),
        student_temperature=1.0,
        teacher_temperature=0.5,
    )
    assert found.item() == pytest.approx(wanted, rel=1e-6)


def test_loss_gradient_and_centre_equal_lightlys(tiny_net):
    random = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 6, 12, generator=random)
    student = torch.randn(5, 6, 12, generator=random).requires_grad_()
    method = dino(tiny_net)
    theirs = DINOLoss(output_dim=12, teacher_temp=0.05, student_temp=0.1)
    for _ in range(3):  # the centre moves between them
        mine = dino_loss(
            student, teacher, method.centre[0], student_temperature=0.1, teacher_temperature=0.05
        )
        other = theirs(list(teacher), list(student), teacher_temp=0.05)
        method._recentre(teacher, 0)
        assert mine.item() == pytest.approx(other.item(), rel=1e-6)
        torch.testing.assert_close(
            *(torch.autograd.grad(loss, student)[0] for loss in (mine, other))
        )
        torch.testing.assert_close(method.centre[0], theirs.center.flatten())


@pytest.mark.filterwarnings("ignore:.*weight_norm.*:FutureWarning")
def test_the_head_equals_lightlys():
    torch.manual_seed(0)
    mine, theirs = Head(6, 12), DINOProjectionHead(6, output_dim=12)
    with torch.no_grad():
        for ours, other in zip(mine.layers[::2], theirs.layers[::2], strict=True):
            other.weight.copy_(ours.weight)
            other.bias.copy_(ours.bias)
        theirs.last_layer.weight_v.copy_(mine.prototypes)
    features = torch.randn(4, 6)
    torch.testing.assert_close(mine(features), theirs(features))


def test_the_teacher_follows_on_a_cosine_over_all_steps():
    plan = schedule()
    found = [plan.momentum(step) for step in range(STEPS)]
    wanted = [cosine_schedule(step, STEPS, 0.996, 1.0) for step in range(STEPS)]
    assert found == pytest.approx(wanted, abs=1e-15)
    assert found == sorted(found)
    # Not over ten epochs, nor over any number of them: a tenth of the way in little has changed.
    assert found[STEPS // 10] < 0.9962
    assert found[-2] < found[-1] == 1


def test_late_in_a_run_the_teacher_still_moves(tiny_net, view):
    method = dino(tiny_net)
    optimizer = torch.optim.SGD(method.parameters(), lr=0.1)
    for step in range(3):
        learn(method, crops(view), optimizer, step=step)
    before = [p.clone() for p in method.encoder.parameters()]
    students = [p.detach().clone() for p in method.student.parameters()]
    learn(method, crops(view), step=STEPS * 9 // 10)
    left = schedule().momentum(STEPS * 9 // 10 - 1)
    assert left < 1
    moved = zip(before, students, method.encoder.parameters(), strict=True)
    for old, student, new in moved:
        torch.testing.assert_close(new, left * old + (1 - left) * student)
    assert any(not torch.equal(*pair) for pair in zip(before, students, strict=True))


def test_the_temperature_warms_up_and_stays():
    plan = schedule(warmup_steps=4)
    found = [plan.temperature(step) for step in (0, 1, 2, 3, 4, 99)]
    assert found == pytest.approx([0.02, 0.025, 0.03, 0.035, 0.04, 0.04])
    assert schedule().temperature(0) == 0.04


def test_teacher_and_student_share_no_weights_and_the_teacher_gets_no_gradient(tiny_net, view):
    method = dino(tiny_net)
    students = {p.data_ptr() for p in method.student.parameters()}
    assert students.isdisjoint(p.data_ptr() for p in method.encoder.parameters())
    learn(method, crops(view))
    assert all(p.grad is not None for p in method.student.parameters())
    assert all(p.grad is not None for p in method.student_head.parameters())
    for part in (method.encoder, method.head):
        assert all(p.grad is None for p in part.parameters())


def test_prototypes_stand_still_at_first_even_under_decay(tiny_net, view):
    method = dino(tiny_net, schedule(frozen_steps=2))
    optimizer = torch.optim.AdamW(method.parameters(), lr=0.1, weight_decay=0.5)
    prototypes, first = method.student_head.prototypes, method.student_head.prototypes.clone()
    for step, frozen in enumerate((True, True, False)):
        learn(method, crops(view), optimizer, step=step)
        assert torch.equal(prototypes, first) == frozen


def test_the_loss_sees_the_centre_of_earlier_steps_only(tiny_net, view):
    method = dino(tiny_net)
    method.centre.normal_(generator=torch.Generator().manual_seed(5))
    before, views = method.centre[0].clone(), crops(view)
    loss = method(views, torch.Generator()).loss
    with torch.no_grad():
        student = [method.student_head(method.student(v)) for v in _joined(views)]
        teacher = method.head(method.encoder(_joined(views)[0])).unflatten(0, (2, -1))
        wanted = dino_loss(
            torch.cat(student).unflatten(0, (5, -1)),
            teacher,
            before,
            student_temperature=0.1,
            teacher_temperature=0.04,
        )
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(method.centre[0], 0.9 * before + 0.1 * teacher.mean(dim=(0, 1)))


def _joined(views):
    return [torch.cat([v.image for v in part]) for part in (views[:2], views[2:])]


def test_the_centre_is_part_of_the_state(tiny_net, view):
    method, other = dino(tiny_net), dino(tiny_net)
    learn(method, crops(view))
    other.load_state_dict(method.state_dict())
    assert torch.equal(other.centre, method.centre)
    assert other.centre.any()


def test_loss_and_cosines_are_float32_inside_autocast(tiny_net, view):
    method = dino(tiny_net)
    with torch.autocast("cpu", torch.bfloat16):
        learned = method(crops(view), torch.Generator())
        assert method.head(torch.randn(2, 6)).dtype == torch.float32
    assert learned.loss.dtype == learned.embedding.dtype == torch.float32
    assert learned.embedding.shape == (4, 6)


@pytest.mark.parametrize("method", ["dino", "swav", "paws"])
@pytest.mark.parametrize(("backbone", "least"), [("resnet18", 0.14), ("spec_vit_tiny", 0.4)])
def test_large_crops_are_of_two_times_and_small_ones_of_both(method, backbone, least):
    settings = Pretrain(method=method, backbone=backbone, local_crops=4)
    drawn = crops_of(settings, EncoderShape(backbone, 80, 56, 8), patches=2)
    assert [crop.patch for crop in drawn] == [0, 1, 0, 1, 0, 1]
    assert [crop.augmentation.size_px for crop in drawn] == [56, 56, 24, 24, 24, 24]
    assert [crop.augmentation.area for crop in drawn] == [(least, 1)] * 2 + [(0.05, least)] * 4


@pytest.mark.parametrize(
    ("backbone", "local_px"), [("vit_tiny", 12), ("vit_tiny", 32), ("resnet18", 40)]
)
def test_small_crops_must_be_small_and_of_whole_tokens(backbone, local_px):
    settings = Pretrain(method="dino", backbone=backbone, local_px=local_px)
    with pytest.raises(RecipeError, match="local_px"):
        crops_of(settings, EncoderShape(backbone, 3, 32, 8), patches=2)
    without = settings.model_copy(update={"local_crops": 0})
    assert len(crops_of(without, EncoderShape(backbone, 3, 32, 8), patches=2)) == 2


def test_a_vit_for_any_size_has_the_weights_and_features_of_one_for_its_own():
    shape = EncoderShape("vit_tiny", 3, 16, 4)
    fixed, free = (build_encoder(shape, seed=0, any_size=free).eval() for free in (False, True))
    own, large = fixed.state_dict(), free.state_dict()
    assert own.keys() == large.keys()
    assert all(torch.equal(own[key], large[key]) for key in own)
    images = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        torch.testing.assert_close(fixed(images), free(images))
        assert free(images[..., :8, :8]).shape == (2, 192)


def test_a_recipe_says_what_the_method_is_made_of():
    settings = Pretrain(
        method="dino",
        steps=200,
        prototypes=16,
        teacher_momentum=0.9,
        teacher_temperature=0.07,
        teacher_warmup_steps=50,
        frozen_fraction=0.1,
        centre_momentum=0.8,
    )
    method = build_method(settings, EncoderShape("vit_tiny", 3, 16, 4))
    assert method.schedule == Schedule(200, 0.9, 0.04, 0.07, 50, 20)
    assert method.centre_momentum == 0.8
    assert method.centre.shape == (1, 16)


def test_a_vit_student_leaves_blocks_out_and_its_teacher_none():
    method = build_method(Pretrain(method="dino"), EncoderShape("vit_tiny", 3, 16, 4))
    students = [block.drop_path1 for block in method.student.blocks]
    rates = [getattr(part, "drop_prob", 0.0) for part in students]
    assert rates == pytest.approx([0.1 * k / 11 for k in range(12)])
    assert all(isinstance(block.drop_path1, nn.Identity) for block in method.encoder.blocks)
    assert method.student.state_dict().keys() == method.encoder.state_dict().keys()


def test_the_recipe_of_the_paper_is_the_usual_one():
    settings = Pretrain(method="dino", steps=100, batch_size=512)
    assert settings.learning_rate == pytest.approx(3e-4)
    assert (settings.weight_decay, settings.weight_decay_end) == (0.04, 0.4)
    assert (settings.warmup_steps, settings.clip, settings.optimizer) == (10, 3.0, "adamw")
    assert Pretrain(method="dino", clip=1.0, warmup_steps=0).clip == 1.0

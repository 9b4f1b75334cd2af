"""PAWS: its predictions and loss by hand and by the formula of its code, its support."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from pipeline.pretrain.methods.paws import PAWS, parted, paws_loss, predict, sharpen, smooth


def paws(net, classes=3):
    torch.manual_seed(2)
    return PAWS(net(3), 6, classes=classes, hidden_width=8, temperature=0.1)


def predictions(rows, seed):
    random = torch.Generator().manual_seed(seed)
    return F.softmax(2 * torch.randn(rows, 3, generator=random, dtype=torch.float64), dim=1)


def views(view, classes=3):
    support = view(2 * classes, 3, seed=5)
    label = torch.arange(classes).repeat(2)
    return [view(4, 3, seed=0), view(4, 3, seed=1), support._replace(label=label)]


def test_a_prediction_done_by_hand():
    # Cosines 1 and 0 with the two support items, at temperature 1/2.
    unit, support = torch.tensor([[1.0, 0.0]]), torch.eye(2)
    near = math.exp(2) / (math.exp(2) + 1)
    found = predict(unit, support, torch.tensor([[0.9, 0.1], [0.1, 0.9]]), 0.5)
    wanted = [0.9 * near + 0.1 * (1 - near), 0.1 * near + 0.9 * (1 - near)]
    assert found.tolist()[0] == pytest.approx(wanted)


def test_sharpening_and_smoothing_done_by_hand():
    found = sharpen(torch.tensor([[0.75, 0.25]])).tolist()[0]
    assert found == pytest.approx([81 / 82, 1 / 82])  # fourth powers, 3 : 1
    assert smooth(torch.tensor([1]), 2).tolist()[0] == pytest.approx([0.05, 0.95])


def test_loss_and_gradient_equal_the_formula_of_the_papers_code():
    ours, theirs = ([predictions(5, k).requires_grad_() for k in range(2)] for _ in range(2))
    mine = paws_loss(*ours)
    said = torch.cat(theirs)
    with torch.no_grad():
        targets = said.flip(0).reshape(2, 5, 3).flip(1).flatten(0, 1)
        targets = targets**4 / (targets**4).sum(dim=1, keepdim=True)
        targets[targets < 1e-4] *= 0
    other = (said ** (-targets)).log().sum(dim=1).mean()
    mean = (said**4 / (said**4).sum(dim=1, keepdim=True)).mean(dim=0)
    other = other - (mean ** (-mean)).log().sum()
    assert mine.item() == pytest.approx(other.item(), rel=1e-12)
    wanted = torch.autograd.grad(other, theirs)
    torch.testing.assert_close(torch.autograd.grad(mine, ours), wanted, rtol=1e-9, atol=1e-12)


def test_small_crops_are_held_to_the_mean_of_both_targets():
    """The released code for hyperspectral images leaves the mean out."""
    ours, theirs = ([predictions(5, k).requires_grad_() for k in range(4)] for _ in range(2))
    mine = paws_loss(*ours)
    with torch.no_grad():
        one, other = (part**4 / (part**4).sum(dim=1, keepdim=True) for part in theirs[:2])
        targets = torch.cat([other, one, 0.5 * (one + other), 0.5 * (one + other)])
        targets[targets < 1e-4] = 0
    said = torch.cat(theirs)
    sharp = said**4 / (said**4).sum(dim=1, keepdim=True)
    mean = sharp.mean(dim=0)
    formula = -(targets * said.log()).sum(dim=1).mean() + (mean * mean.log()).sum()
    assert mine.item() == pytest.approx(formula.item(), rel=1e-12)
    wanted = torch.autograd.grad(formula, theirs)
    torch.testing.assert_close(torch.autograd.grad(mine, ours), wanted, rtol=1e-9, atol=1e-12)


def test_a_small_crops_part_done_by_hand():
    # Two large crops sure of different classes: a small one should waver between them.
    sure = [torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    costs = [paws_loss(sure[0], sure[0], torch.tensor([[p, 1 - p]])).item() for p in (1.0, 0.5)]
    # Sharpened, one class and the other in 2 : 0 and 2.5 : 0.5 of three.
    variety = -(5 / 6 * math.log(5 / 6) + 1 / 6 * math.log(1 / 6))
    assert costs == pytest.approx([0.0, math.log(2) / 3 - variety], abs=1e-6)


def test_small_crops_join_the_loss_and_the_support_stays_large(tiny_net, view):
    method = paws(tiny_net)
    large, support = views(view)[:2], views(view)[2:]
    small = [view(4, 3, 4, seed=k) for k in (7, 8)]
    learned = method([*large, *small, *support], torch.Generator())
    learned.loss.backward()
    assert learned.embedding.shape == (4, 6)
    assert learned.compared.shape == (4, 128)
    assert all(p.grad is not None for p in method.parameters())
    found = parted([*large, *small, *support])
    assert [len(part) for part in found] == [2, 2, 1]
    assert found[2][0] is support[0]


def test_saying_the_same_of_all_items_costs_more_than_telling_them_apart():
    apart = torch.eye(3) * 0.97 + 0.01
    same = apart[:1].expand(3, -1)
    assert paws_loss(apart, apart) < paws_loss(same, same) - 1


def test_the_support_gets_a_gradient_and_targets_none(tiny_net, view):
    method = paws(tiny_net)
    learned = method(views(view), torch.Generator())
    learned.loss.backward()
    assert all(p.grad is not None for p in method.parameters())
    assert learned.embedding.shape == (4, 6)
    assert set(learned.measures) == set(method.measures)


def test_a_support_without_labels_is_refused(tiny_net, view):
    with pytest.raises(ValueError, match="labels"):
        paws(tiny_net)([view(4, 3)] * 3, torch.Generator())


def test_a_steps_support_has_every_class_equally_often_of_the_training_part(published):
    from pipeline.run.labelled import labelled_windows, support_of
    from pipeline.store.reader import open_dataset

    evaluate = {"labels": "labels", "window_px": 8}
    loaded = published.recipe(pretrain={"method": "paws"}, evaluate=evaluate)
    dataset = open_dataset(published.store)
    reader = dataset.patches("image")
    windows = labelled_windows(loaded, dataset, reader)
    pretrain = loaded.recipe.pretrain
    draw, classes = support_of(windows, reader, pretrain, torch.device("cpu"))
    stored, label = draw(3)
    assert classes == 2
    assert label.bincount().tolist() == [pretrain.support_per_class] * 2
    again = draw(3)
    assert torch.equal(stored.bands, again[0].bands)
    assert not torch.equal(stored.bands, draw(4)[0].bands)
    # Each is a labelled window of the training part, of the class it is said to be.
    known = {}
    for number in windows.of("train"):
        y, x = windows.y_px[number], windows.x_px[number]
        pixels = reader.read([windows.patch[number]])[0][0, :, y : y + 8, x : x + 8]
        known[pixels.tobytes()] = windows.label[number] - 1
    found = [known[pixels.tobytes()] for pixels in stored.bands.numpy()]
    assert found == label.tolist()

"""Losses on random class trees against loops over pixels."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from raydet.bench import plain_losses as plain
from raydet.config.losses import HierarchicalLoss, RMIConfig
from raydet.config.task import Level
from raydet.models.losses.build import build_loss
from raydet.models.losses.rmi import RMI
from raydet.models.losses.triplet import TreeTriplet
from raydet.structures import IGNORE
from tests.unit.models.losses.trees import CLASSES, KINDS, REALMS, random_ids, random_tree


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def slow_tree_loss(
    logits: np.ndarray, ids: np.ndarray, levels: list[Level], *, form: str, gamma: float
) -> float:
    """Pixel by pixel, on logits at the labels' size, from the definitions in sigmoid scores."""
    epsilon = 1e-8 if len(levels) == 1 else 1e-6
    sizes = [len(levels[0].parents), *(len(level.groups) for level in levels)]
    starts = np.cumsum([0, *sizes])
    costs = []
    for image, row, column in np.argwhere(ids != IGNORE):
        scores = 1 / (1 + np.exp(-logits[image, :, row, column]))
        own = [scores[a:b] for a, b in pairwise(starts)]
        highest = [list(own[0])]
        for i, level in enumerate(levels):
            best = [
                max(h for h, parent in zip(highest[i], level.parents, strict=True) if parent == group)
                for group in range(len(level.groups))
            ]
            highest.append([max(s, b) for s, b in zip(own[i + 1], best, strict=True)])
        lowest = [list(own[-1])]
        for i in reversed(range(len(levels))):
            above = lowest[0] if form == "hieraseg" else own[i + 1]
            lowest.insert(0, [min(s, above[p]) for s, p in zip(own[i], levels[i].parents, strict=True)])
        member = int(ids[image, row, column])
        cost = 0.0
        for i, size in enumerate(sizes):
            for j in range(size):
                d, u = lowest[i][j], highest[i][j]
                part = (
                    (1 - d) ** gamma * math.log(d + epsilon)
                    if j == member
                    else u**gamma * math.log(1 - u + epsilon)
                )
                cost -= part / size
            member = levels[i].parents[member] if i < len(levels) else member
        costs.append(cost)
    return float(np.mean(costs))


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@pytest.mark.parametrize("form", ["hieraseg", "seghiero"])
@pytest.mark.parametrize("gamma", [0.0, 2.0])
def test_random_trees(depth: int, form: str, gamma: float) -> None:
    random = generator(depth)
    levels = random_tree(11, depth, random)
    config = HierarchicalLoss(weight=1, form=form, focal_gamma=gamma)
    loss = build_loss(config, num_classes=11, levels=levels)
    logits = 3 * torch.randn(2, loss.num_outputs, 3, 4, generator=random, dtype=torch.float64)
    ids = random_ids((2, 9, 7), 11, random)
    upsampled = F.interpolate(logits, size=(9, 7), mode="bilinear").numpy()
    expected = slow_tree_loss(upsampled, ids.numpy(), levels, form=form, gamma=gamma)
    found = loss(logits.requires_grad_(), None, ids)
    assert found["loss_hierarchy"].item() == pytest.approx(expected, rel=1e-10)
    wide = F.interpolate(logits.detach(), size=(9, 7), mode="bilinear")
    entropies = plain.cross_entropies(wide, ids, levels, over_all=False)
    for name, entropy in zip(loss.names[1:], entropies, strict=True):
        assert found[name].item() == pytest.approx(entropy.item(), rel=1e-10)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("form", ["hieraseg", "seghiero"])
def test_gradients_on_random_trees(depth: int, form: str) -> None:
    random = generator(7 + depth)
    levels = random_tree(8, depth, random)
    loss = build_loss(HierarchicalLoss(form=form, focal_gamma=0.5 * depth), num_classes=8, levels=levels)
    logits = torch.randn(1, loss.num_outputs, 2, 3, generator=random, dtype=torch.float64, requires_grad=True)
    ids = random_ids((1, 5, 5), 8, random)
    assert torch.autograd.gradcheck(lambda x: (*loss(x, None, ids).values(),), (logits,), fast_mode=True)


def test_the_two_forms_differ_from_three_levels_on() -> None:
    random = generator()
    for levels, is_equal in [([KINDS], True), ([KINDS, REALMS], False)]:
        ids = random_ids((2, 8, 8), CLASSES, random)
        values = []
        for form in ("hieraseg", "seghiero"):
            loss = build_loss(HierarchicalLoss(form=form), num_classes=CLASSES, levels=levels)
            logits = torch.randn(2, loss.num_outputs, 8, 8, generator=generator(1))
            values.append(loss(logits, None, ids)["loss_hierarchy"].item())
        assert (values[0] == values[1]) == is_equal


def consistent_logits(ids_BHW: Tensor, levels: list[Level], *, confidence: float) -> Tensor:
    labels = plain.labels_by_level(ids_BHW, levels)
    sizes = [len(levels[0].parents), *(len(level.groups) for level in levels)]
    truth = torch.cat([plain.one_hot(x, size) for x, size in zip(labels, sizes, strict=True)], dim=1)
    return confidence * (2 * truth - 1)


@pytest.mark.parametrize("form", ["hieraseg", "seghiero"])
def test_a_confident_consistent_prediction_costs_nothing(form: str) -> None:
    levels = [KINDS, REALMS]
    ids = random_ids((2, 8, 8), CLASSES, generator(), ignored=0)
    loss = build_loss(HierarchicalLoss(form=form), num_classes=CLASSES, levels=levels)
    logits = consistent_logits(ids, levels, confidence=20.0)
    good = loss(logits, None, ids)["loss_hierarchy"].item()
    assert good < 1e-3
    wrong_parent = logits.clone()
    wrong_parent[:, CLASSES : CLASSES + 4] = wrong_parent[:, CLASSES : CLASSES + 4].roll(1, dims=1)
    assert loss(wrong_parent, None, ids)["loss_hierarchy"].item() > good + 1


def test_ties_share_the_gradient() -> None:
    """Of all-zero logits; the tree's loss has the gradient that automatic differentiation gives the plain one."""
    levels = [KINDS, REALMS]
    ids = random_ids((1, 4, 4), CLASSES, generator())
    loss = build_loss(HierarchicalLoss(weight=1, form="seghiero"), num_classes=CLASSES, levels=levels)
    logits = torch.zeros(1, 15, 4, 4, dtype=torch.float64, requires_grad=True)
    (found,) = torch.autograd.grad(loss(logits, None, ids)["loss_hierarchy"], logits)
    (expected,) = torch.autograd.grad(plain.binary_losses(logits, ids, levels), logits)
    # Which of a tie has it is open; that none is lost or doubled is not.
    torch.testing.assert_close(found.sum(dim=1), expected.sum(dim=1))


@pytest.mark.parametrize("depth", [1, 3])
def test_numbering_changes_nothing(depth: int) -> None:
    """Class ids and groups of each level permuted, the tree and the logits with them."""
    random = generator(depth)
    levels = random_tree(10, depth, random)
    ids = random_ids((2, 12, 10), 10, random)
    config = HierarchicalLoss(rmi=RMIConfig())
    loss = build_loss(config, num_classes=10, levels=levels)
    logits = torch.randn(2, loss.num_outputs, 6, 5, generator=random, dtype=torch.float64)

    new_of_old = torch.randperm(10, generator=random)
    table = torch.full((256,), IGNORE, dtype=torch.uint8)
    table[:10] = new_of_old.to(torch.uint8)
    order, start, new_levels = [new_of_old.argsort()], 10, []
    for level in levels:
        below, new_of_old = new_of_old, torch.randperm(len(level.groups), generator=random)
        parents = new_of_old[torch.tensor(level.parents)[below.argsort()]]
        groups = tuple(level.groups[i] for i in new_of_old.argsort())
        new_levels.append(Level(name=level.name, groups=groups, parents=tuple(parents.tolist())))
        order.append(start + new_of_old.argsort())
        start += len(level.groups)
    new_loss = build_loss(config, num_classes=10, levels=new_levels)
    x, y = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    old = loss(x, None, ids)
    new = new_loss(y[:, torch.cat(order)], None, table[ids.long()])
    for name, value in old.items():
        assert new[name].item() == pytest.approx(value.item(), rel=1e-10)
    sum(old.values()).backward()
    sum(new.values()).backward()
    torch.testing.assert_close(x.grad, y.grad)


@pytest.mark.parametrize(("form", "pools"), [("hieraseg", True), ("seghiero", False)])
def test_region_mutual_information(form: str, pools: bool) -> None:
    """Value and gradient are those of automatic differentiation through inverse and determinant."""
    random = generator()
    levels = [KINDS, REALMS]
    ids = random_ids((2, 31, 26), CLASSES, random, ignored=0)
    logits = torch.randn(2, 15, 8, 7, generator=random, dtype=torch.float64, requires_grad=True)
    path = torch.tensor(build_loss(HierarchicalLoss(), num_classes=CLASSES, levels=levels).tree.paths)
    found = RMI(form=form)(logits, ids, path)
    expected = plain.rmi(plain.upsampled(logits, ids), ids, levels, pool=pools, center=pools)
    assert found.item() == pytest.approx(expected.item(), abs=1e-5)  # their 1e-8
    (gradient,) = torch.autograd.grad(found, logits)
    (expected_gradient,) = torch.autograd.grad(expected, logits)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


def test_region_mutual_information_prefers_the_truth() -> None:
    ids = (torch.arange(64) // 8 % CLASSES)[None, :, None].repeat(1, 1, 64).to(torch.uint8)
    ids = ids.roll(5, dims=1)
    loss = build_loss(HierarchicalLoss(rmi=RMIConfig()), num_classes=CLASSES, levels=[KINDS])
    logits = consistent_logits(ids, [KINDS], confidence=4.0)
    good, blurred, shifted = (
        loss(x, None, ids)["loss_rmi"].item() for x in (logits, 0.1 * logits, logits.roll(3, dims=2))
    )
    assert good < shifted
    assert good <= blurred + 1e-6


@pytest.mark.parametrize("most", [3, 200])
def test_triplets_on_random_trees(most: int) -> None:
    random = generator()
    for depth in (1, 3):
        (level, *_) = random_tree(12, depth, random)
        ids = random_ids((3, 20, 27), 12, random)
        embedding = F.normalize(torch.randn(3, 8, 7, 9, generator=random, dtype=torch.float64), dim=1)
        theirs = plain.triplet(embedding, ids, level.parents, ignored_are_negatives=False, most=most)
        found = TreeTriplet(groups=level.parents, most=most).unweighted(embedding, ids)
        assert found.item() == pytest.approx(theirs.item(), rel=1e-10)


def test_classes_alone_in_their_group_have_no_triplets() -> None:
    ids = random_ids((1, 8, 8), 3, generator())
    embedding = torch.randn(1, 4, 8, 8, generator=generator(), requires_grad=True)
    value = TreeTriplet(groups=(0, 1, 2)).unweighted(embedding, ids)
    value.backward()
    assert value.item() == 0
    assert embedding.grad is not None
    assert not embedding.grad.any()

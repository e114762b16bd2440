"""Golden values of SegHiero's and HieraSeg's losses.

Those with ignored pixels contain habits of the published code that raydet does not share (cross-entropy divided by all
pixels, ignored pixels as negatives): they hold for the plain restatement, which equals ours where nothing is ignored.
"""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from raydet.bench import plain_losses as plain
from raydet.config.losses import HierarchicalLoss, RMIConfig, TripletConfig
from raydet.models.losses.build import build_loss
from raydet.models.losses.triplet import TreeTriplet
from tests.unit.models.golden import sin_input
from tests.unit.models.losses.trees import CLASSES, KINDS, REALMS, golden_ids

TWO, THREE = [KINDS], [KINDS, REALMS]
SEGHIERO = HierarchicalLoss(form="seghiero")
EXACT = {"abs": 2e-6}  # they were computed in fp32


def two_levels() -> Tensor:
    return 2 * sin_input(2, 13, 8, 8)


def embedding() -> Tensor:
    return F.normalize(sin_input(2, 16, 4, 4, phase=0.5).float(), dim=1)


def ours(
    config: HierarchicalLoss, logits: Tensor, *, levels: list, ignored: bool = False
) -> dict[str, float]:
    loss = build_loss(config, num_classes=CLASSES, levels=levels)
    return {name: x.item() for name, x in loss(logits, None, golden_ids(ignored=ignored)).items()}


def test_logits_of_zero() -> None:
    two = ours(SEGHIERO, 0 * two_levels(), levels=TWO)
    assert two["loss_hierarchy"] == pytest.approx(10 * math.log(2), abs=1e-6)
    three = ours(SEGHIERO.model_copy(update={"weight": 2.5}), torch.zeros(2, 15, 8, 8).double(), levels=THREE)
    assert sum(three.values()) == pytest.approx(9.475270, abs=3e-5)  # e of 1e-6, in the golden value not


@pytest.mark.parametrize(("ignored", "expected"), [(False, 11.085003), (True, 11.012240)])
@pytest.mark.parametrize("form", ["seghiero", "hieraseg"])
def test_two_levels(form: str, ignored: bool, expected: float) -> None:
    config = HierarchicalLoss(form=form)
    value = ours(config, two_levels(), levels=TWO, ignored=ignored)["loss_hierarchy"]
    assert value == pytest.approx(expected, **EXACT)
    theirs = 5 * plain.binary_losses(two_levels(), golden_ids(ignored=ignored), TWO)
    assert theirs.item() == pytest.approx(expected, **EXACT)


def test_cross_entropy_with_ignored_pixels() -> None:
    theirs = plain.cross_entropies(two_levels(), golden_ids(ignored=True), TWO)
    assert [x.item() for x in theirs] == pytest.approx([2.888795, 2.083444], **EXACT)
    found = ours(SEGHIERO, two_levels(), levels=TWO, ignored=True)
    share = 122 / 128  # six pixels are ignored
    assert found["loss_ce"] == pytest.approx(3.030867, **EXACT)
    assert found["loss_ce_kind"] == pytest.approx(2.083444 / share, **EXACT)


def test_triplets() -> None:
    triplet = TreeTriplet(groups=KINDS.parents)
    assert triplet.unweighted(embedding(), golden_ids()).item() == pytest.approx(0.378245, **EXACT)
    theirs = plain.triplet(embedding(), golden_ids(), KINDS.parents)
    assert theirs.item() == pytest.approx(0.378245, **EXACT)
    ids = golden_ids(ignored=True)
    theirs = plain.triplet(embedding(), ids, KINDS.parents)
    assert theirs.item() == pytest.approx(0.309815, **EXACT)
    valid = plain.triplet(embedding(), ids, KINDS.parents, ignored_are_negatives=False)
    assert triplet.unweighted(embedding(), ids).item() == pytest.approx(valid.item(), **EXACT)


@pytest.mark.parametrize(("step", "expected"), [(0, 15.984479), (40000, 16.061933), (80000, 16.139387)])
def test_total_with_ignored_pixels(step: int, expected: float) -> None:
    """Of the published code: its cross-entropy, its negatives."""
    ids = golden_ids(ignored=True)
    on_tree = 5 * plain.binary_losses(two_levels(), ids, TWO) + sum(
        plain.cross_entropies(two_levels(), ids, TWO)
    )
    triplets = plain.triplet(embedding(), ids, KINDS.parents)
    assert (on_tree + plain.triplet_weight(step) * triplets).item() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("step", [0, 40000, 80000])
def test_total_without_ignored_pixels(step: int) -> None:
    config = SEGHIERO.model_copy(update={"triplet": TripletConfig(warmup_fraction=0.5)})
    loss = build_loss(config, num_classes=CLASSES, levels=TWO)
    loss.set_progress(step / 160000)
    found = sum(loss(two_levels(), embedding(), golden_ids()).values())
    on_tree = 5 * plain.binary_losses(two_levels(), golden_ids(), TWO) + sum(
        plain.cross_entropies(two_levels(), golden_ids(), TWO)
    )
    triplets = plain.triplet(embedding(), golden_ids(), KINDS.parents)
    expected = on_tree + plain.triplet_weight(step) * triplets
    assert float(found) == pytest.approx(expected.item(), abs=1e-6)


def test_weight_of_triplets() -> None:
    """The golden values count in steps to the end of the warm-up; here, in parts of the run."""
    triplet = TreeTriplet(groups=KINDS.parents, weight=0.5, warmup_fraction=0.5)
    for done, expected in [(0, 0.0), (49 / 80000, 4.628e-7), (0.5, 0.25), (1, 0.5), (2, 0.5)]:
        triplet.set_progress(0.5 * done)
        assert triplet.current_weight.item() == pytest.approx(expected, rel=1e-4)
        assert plain.triplet_weight(round(80000 * done)) == pytest.approx(expected, rel=1e-4)
    assert "current_weight" not in triplet.state_dict()
    at_once = TreeTriplet(groups=KINDS.parents, weight=0.5, warmup_fraction=0.0)
    assert at_once.current_weight.item() == 0.5


@pytest.mark.parametrize(("weight", "expected"), [(0.0, 15.288259), (0.5, 7.382411), (1.0, -0.523437)])
def test_three_levels(weight: float, expected: float) -> None:
    logits = 2 * sin_input(2, 15, 8, 8)
    config = SEGHIERO.model_copy(update={"weight": 2.5, "rmi": RMIConfig(weight=weight, form="seghiero")})
    assert sum(ours(config, logits, levels=THREE).values()) == pytest.approx(expected, abs=6e-6)
    theirs = (
        2.5 * plain.binary_losses(logits, golden_ids(), THREE)
        + sum(plain.cross_entropies(logits, golden_ids(), THREE))
        + weight * plain.rmi(logits, golden_ids(), THREE)
    )
    assert theirs.item() == pytest.approx(expected, abs=1e-6)


def test_region_mutual_information() -> None:
    logits = 2 * sin_input(2, 15, 8, 8)
    for form, expected in [("seghiero", -15.811696), ("hieraseg", -51.808160)]:
        config = HierarchicalLoss(rmi=RMIConfig(form=form))
        # Without their 1e-8 inside the logarithm, 15 outputs x 3e-7 at most.
        assert ours(config, logits, levels=THREE)["loss_rmi"] == pytest.approx(expected, abs=6e-6)
    centered = plain.rmi(logits, golden_ids(), THREE, center=True)
    pooled = plain.rmi(logits, golden_ids(), THREE, center=True, pool=True)
    assert centered.item() == pytest.approx(-15.811855, abs=1e-6)
    assert pooled.item() == pytest.approx(-51.808160, abs=1e-6)

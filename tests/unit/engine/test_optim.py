"""Learning-rate schedules, as numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from raydet.config import (
    AdamWConfig,
    ConstantSchedule,
    CosineSchedule,
    OneCycleSchedule,
    PlateauSchedule,
    Schedule,
    SGDConfig,
    StepSchedule,
)
from raydet.engine.optim import build_optimizer, learning_rate


def rates(schedule: Schedule, total: int = 100) -> list[float]:
    config = SGDConfig(lr=1.0, schedule=schedule)
    return [learning_rate(config, step=step, steps_per_epoch=10, total_steps=total) for step in range(total)]


def test_constant() -> None:
    assert set(rates(ConstantSchedule())) == {1.0}


def test_warm_up_is_linear_and_never_zero() -> None:
    assert rates(ConstantSchedule(warmup_steps=4))[:6] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_steps_fall_at_epochs() -> None:
    values = rates(StepSchedule(step_epochs=3, gamma=0.1))
    assert values[29] == 1.0
    assert values[30] == pytest.approx(0.1)
    assert values[60] == pytest.approx(0.01)


def test_cosine_halves_in_the_middle_and_ends_near_its_fraction() -> None:
    values = rates(CosineSchedule(warmup_steps=0, final_fraction=0.0))
    assert values[0] == 1.0
    assert values[50] == pytest.approx(0.5)
    assert values[99] == pytest.approx(0.0, abs=1e-3)
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(("total", "up"), [(100, 0.3), (1000, 0.005), (400_000, 0.005)])
def test_one_cycle_is_that_of_pytorch(total: int, up: float) -> None:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    witness = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 1.0, total, pct_start=up, anneal_strategy="linear", div_factor=20, final_div_factor=10_000
    )
    found = rates(OneCycleSchedule(up_fraction=up), total=total)
    for step in range(min(total, 3000)):
        assert found[step] == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-12)
        optimizer.step()
        witness.step()
    assert found[-1] == pytest.approx(1 / 200_000)


@pytest.mark.parametrize("total", [1, 2, 50, 200])
def test_one_cycle_of_few_steps_begins_at_the_top(total: int) -> None:
    """PyTorch divides by zero there."""
    found = rates(OneCycleSchedule(up_fraction=0.005), total=total)
    assert found[0] == 1.0
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("patience", [0, 1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_plateaus_are_those_of_pytorch(seed: int, patience: int) -> None:
    """The rate of each epoch, from the evaluations before it alone."""
    torch.manual_seed(seed)
    scores = (torch.rand(40).cumsum(0).log() + 0.3 * torch.randn(40)).tolist()
    scores[10] = scores[9] * (1 + 5e-5)  # better, but by less than the threshold
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    witness = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, mode="max", factor=0.5, patience=patience, min_lr=0.0, eps=0.0
    )
    config = SGDConfig(lr=1.0, schedule=PlateauSchedule(factor=0.5, patience=patience))
    cuts = set()
    for epoch, value in enumerate(scores, 1):
        witness.step(value)
        expected = optimizer.param_groups[0]["lr"]
        found = learning_rate(
            config, step=epoch * 10, steps_per_epoch=10, total_steps=400, utilities=scores[:epoch]
        )
        assert found == pytest.approx(expected, rel=1e-12)
        cuts.add(expected)
    assert len(cuts) > 2


def test_adamw_spares_vectors_from_decay_and_sgd_does_not() -> None:
    model = nn.Linear(3, 2)
    adamw = build_optimizer(AdamWConfig(weight_decay=0.1), model.parameters())
    decays = {tuple(p.shape): group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    assert decays == {(2, 3): 0.1, (2,): 0.0}
    sgd = build_optimizer(SGDConfig(weight_decay=0.1), model.parameters())
    assert [group["weight_decay"] for group in sgd.param_groups] == [0.1]


def test_fused_sgd_is_the_textbook_one() -> None:
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer = build_optimizer(SGDConfig(lr=0.1, momentum=0.9, weight_decay=0.01), [weight])
    value, momentum = weight.detach().clone(), torch.zeros(2)
    for _ in range(3):
        (weight.square().sum()).backward()
        optimizer.step()
        optimizer.zero_grad()
        momentum = 0.9 * momentum + (2 * value + 0.01 * value)
        value = value - 0.1 * momentum
        torch.testing.assert_close(weight.detach(), value)

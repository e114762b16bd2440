"""The average of the weights, against PyTorch's own."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from raydet.checkpoint.load import AVERAGE
from raydet.engine.averaging import averaged_weights, decay_at, update_average


def trained(num_steps: int) -> tuple[nn.Module, torch.optim.Optimizer, nn.Module]:
    """A model, its optimizer with the average, and PyTorch's average."""
    model = nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    step = 0
    theirs = AveragedModel(
        model,
        avg_fn=lambda average, weight, count: torch.lerp(average, weight, 1 - decay_at(0.9, step)),
    )
    for step in range(num_steps):
        optimizer.zero_grad()
        model(torch.randn(4, 3)).square().sum().backward()
        optimizer.step()
        update_average(optimizer, decay=0.9, step=step)
        theirs.update_parameters(model)
    return model, optimizer, theirs.module


def test_it_is_the_average_of_pytorch() -> None:
    model, optimizer, theirs = trained(30)
    for parameter, expected in zip(model.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(optimizer.state[parameter][AVERAGE], expected, rtol=1e-6, atol=1e-7)
        assert not torch.equal(parameter, expected)


def test_the_weights_are_the_same_again_after_an_evaluation() -> None:
    model, optimizer, _ = trained(5)
    before = [parameter.clone() for parameter in model.parameters()]
    averages = [optimizer.state[parameter][AVERAGE].clone() for parameter in model.parameters()]
    with averaged_weights(optimizer):
        assert all(map(torch.equal, model.parameters(), averages))
    assert all(map(torch.equal, model.parameters(), before))
    assert [optimizer.state[parameter][AVERAGE].tolist() for parameter in model.parameters()] == [
        average.tolist() for average in averages
    ]


def test_early_steps_forget_the_initial_weights() -> None:
    assert decay_at(0.999, 0) == 0.1
    assert decay_at(0.999, 90) == 0.91
    assert decay_at(0.999, 10**6) == 0.999

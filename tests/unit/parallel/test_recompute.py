"""Recomputing changes memory only: not the output, not a gradient, not a running statistic."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor, nn

from raydet.models.backbones.mit import Block
from raydet.models.fusion.cmx import CMX
from raydet.models.fusion.gaff import GAFF
from raydet.parallel.recompute import recompute_activations

MODES: tuple[Literal["block", "selective"], ...] = ("block", "selective")


def saved_bytes(unit: nn.Module, *inputs: Tensor) -> int:
    """Bytes that the backward pass of a unit keeps, without parameters."""
    parameters = {parameter.data_ptr() for parameter in unit.parameters()}
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        outputs = unit(*inputs)
    del outputs
    return sum(kept.values())


def random_unit(unit: nn.Module) -> nn.Module:
    """Weights that are not at their start, where some branches are zero."""
    for parameter in unit.parameters():
        nn.init.normal_(parameter, std=0.3)
    return unit


def fusions() -> list[nn.Module]:
    return [CMX(channels=8, num_heads=2), GAFF(channels=8, se_reduction=4, merge_bottleneck=True)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [0, 1], ids=["cmx", "gaff"])
def test_fusions_are_the_same(kind: int, mode: Literal["block", "selective"]) -> None:
    torch.manual_seed(0)
    plain = random_unit(fusions()[kind])
    again = fusions()[kind]
    again.load_state_dict(plain.state_dict())
    names = list(again.state_dict())
    recompute_activations([again], mode)
    maps = [torch.randn(2, 8, 6, 5) for _ in range(2)]
    gradients = []
    for unit in (plain, again):
        inputs = [x.clone().requires_grad_() for x in maps]
        sum((x * x).sum() for x in unit(*inputs).maps).backward()
        gradients.append([x.grad for x in (*inputs, *unit.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
    torch.testing.assert_close(again.state_dict(), plain.state_dict(), rtol=0, atol=0)
    assert list(again.state_dict()) == names


@pytest.mark.parametrize("mode", MODES)
def test_blocks_are_the_same(mode: Literal["block", "selective"]) -> None:
    torch.manual_seed(0)
    plain = random_unit(Block(channels=16, num_heads=2, sr_ratio=2))
    again = Block(channels=16, num_heads=2, sr_ratio=2)
    again.load_state_dict(plain.state_dict())
    recompute_activations([again], mode)
    x_BNC, keep = torch.randn(2, 24, 16), torch.tensor([[2.0, 0.0], [0.0, 2.0]])[:, :, None, None]
    gradients = []
    for unit in (plain, again):
        x = x_BNC.clone().requires_grad_()
        unit(x, (6, 4), keep).square().sum().backward()
        gradients.append([x.grad, *(parameter.grad for parameter in unit.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_modes_keep_less_and_less() -> None:
    x_BNC = torch.randn(2, 256, 32, requires_grad=True)
    kept = []
    for mode in ("none", *MODES):
        block = Block(channels=32, num_heads=2, sr_ratio=2)
        recompute_activations([block], mode)
        kept.append(saved_bytes(OnMap(block), x_BNC))
    none, full, selective = kept
    assert full <= x_BNC.nbytes + 1024  # the input, and nothing else
    assert full < selective < 0.8 * none


class OnMap(nn.Module):
    """A block on a 16 x 16 map without drop-path."""

    def __init__(self, block: Block) -> None:
        super().__init__()
        self.block = block

    def forward(self, x_BNC: Tensor) -> Tensor:
        result: Tensor = self.block(x_BNC, (16, 16), None)
        return result

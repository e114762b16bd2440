"""Comparison of two checkpoints tensor by tensor, written by any numbers of ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from raydet.checkpoint.blocks import ShardReader
from raydet.checkpoint.load import stored_tensors
from raydet.checkpoint.manifest import verify_checkpoint


@dataclass(frozen=True, slots=True)
class TensorDifference:
    """The difference of two tensors of the same name."""

    name: str
    max_abs: float
    """Infinite if shape or dtype differ, or if an element is NaN in only one of them."""
    max_rel: float
    """`max_abs` over the largest magnitude in the first tensor."""
    text: str
    """Shape and dtype; of both tensors if they differ."""


@dataclass(frozen=True, slots=True)
class CheckpointDifference:
    """The differences of two checkpoints."""

    only_in_first: list[str]
    only_in_second: list[str]
    different: list[TensorDifference]
    """Largest difference first."""
    num_equal: int

    @property
    def is_empty(self) -> bool:
        """Whether the checkpoints are bit-identical."""
        return not (self.only_in_first or self.only_in_second or self.different)


def compare_checkpoints(first: Path, second: Path) -> CheckpointDifference:
    """Compare all tensors; not state.json, which holds times.

    Raises:
        CheckpointError: one of them is damaged.
    """
    for directory in (first, second):
        verify_checkpoint(directory)
    a, b = stored_tensors(first), stored_tensors(second)
    found = []
    names = sorted(a.keys() & b.keys())
    with ShardReader() as reader:
        for name in names:
            text, other = str(a[name]), str(b[name])
            if text != other:
                found.append(TensorDifference(name, math.inf, math.inf, f"{text} {other}"))
                continue
            max_abs, max_rel = _distance(reader.whole(name, a[name]), reader.whole(name, b[name]))
            if max_abs > 0:
                found.append(TensorDifference(name, max_abs, max_rel, text))
    return CheckpointDifference(
        only_in_first=sorted(a.keys() - b.keys()),
        only_in_second=sorted(b.keys() - a.keys()),
        different=sorted(found, key=lambda each: -each.max_abs),
        num_equal=len(names) - len(found),
    )


def _distance(a: Tensor, b: Tensor) -> tuple[float, float]:
    """Largest absolute and relative difference.

    >>> _distance(torch.tensor([1.0, -4.0]), torch.tensor([1.0, -2.0]))
    (2.0, 0.5)
    """
    if a.numel() == 0 or torch.equal(a, b):
        return 0.0, 0.0
    a, b = a.double(), b.double()
    same = (a == b) | (a.isnan() & b.isnan())
    distances = torch.where(same, 0.0, (a - b).abs()).nan_to_num(nan=math.inf, posinf=math.inf)
    max_abs, scale = float(distances.max()), float(a.nan_to_num().abs().max())
    if max_abs == 0:  # equal but for NaN on both sides
        return 0.0, 0.0
    return max_abs, max_abs / scale if scale > 0 else math.inf

"""Class trees, logits and masks for the tests of losses."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raydet.config.task import Level
from raydet.structures import IGNORE

KINDS = Level(name="kind", groups=("flower", "tree", "grass", "animal"), parents=(0, 0, 0, 0, 1, 1, 1, 2, 3))
REALMS = Level(name="realm", groups=("plant", "animal"), parents=(0, 0, 0, 1))
"""Of nine classes: the example that the golden values were computed with."""
CLASSES = 9


def golden_ids(*, ignored: bool = False) -> Tensor:
    """uint8 [2, 8, 8]."""
    ids_BHW = (torch.arange(128) % CLASSES).reshape(2, 8, 8).to(torch.uint8)
    if ignored:
        ids_BHW[:, 0, :3] = IGNORE
    return ids_BHW


def random_tree(num_classes: int, depth: int, generator: torch.Generator) -> list[Level]:
    """Levels with random groups, members of which are anywhere."""
    levels = []
    size = num_classes
    for i in range(depth):
        groups = max(1, math.ceil(size / 2) - int(torch.randint(2, (), generator=generator)))
        parents = torch.randint(groups, (size,), generator=generator)
        parents[torch.randperm(size, generator=generator)[:groups]] = torch.arange(groups)  # none is empty
        names = tuple(f"{i}-{j}" for j in range(groups))
        levels.append(Level(name=f"level{i}", groups=names, parents=tuple(parents.tolist())))
        size = groups
    return levels


def random_ids(
    shape: tuple[int, ...], num_classes: int, generator: torch.Generator, *, ignored: float = 0.2
) -> Tensor:
    """uint8."""
    ids = torch.randint(num_classes, shape, generator=generator).to(torch.uint8)
    ids[torch.rand(shape, generator=generator) < ignored] = IGNORE
    return ids

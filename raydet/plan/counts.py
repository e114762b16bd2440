"""Sizes of parameters, their shards, gradients and optimizer state: exact, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import assert_never

import torch
from torch import nn

from raydet.config import (
    AdamWConfig,
    CustomTask,
    DataConfig,
    DetectionTask,
    Experiment,
    Optimizer,
    SegmentationTask,
    SGDConfig,
    Task,
    TrainConfig,
)
from raydet.models.build import MakeHead, build_model
from raydet.models.sections import HEAD, NECK

PARAMETER_BYTES = 4
"""Weights, gradients and optimizer state are fp32 in every precision."""


@dataclass(frozen=True, slots=True)
class Part:
    """Parameters that are gathered together when the model is sharded; `count` identical parts in one scope."""

    scope: str
    shapes: tuple[tuple[int, ...], ...]
    count: int = 1

    @property
    def unit_bytes(self) -> int:
        """Bytes of one part, unsharded."""
        return PARAMETER_BYTES * sum(map(math.prod, self.shapes))

    @property
    def whole_bytes(self) -> int:
        """Bytes of all `count` parts, unsharded."""
        return self.count * self.unit_bytes

    def shard_bytes(self, shards: int) -> int:
        """Bytes of one rank's shards: each parameter is split along its first dimension and padded.

        >>> Part("stage", shapes=((5, 3), (8,))).shard_bytes(4)
        32
        """
        rows = (math.ceil(shape[0] / shards) * math.prod(shape[1:]) for shape in self.shapes)
        return self.count * PARAMETER_BYTES * sum(rows)


def canonical(experiment: Experiment) -> Experiment:
    """The experiment with defaults for everything that does not affect a step's memory, as a key for caches."""
    data = experiment.data
    return Experiment(
        name="",
        task=_canonical_task(experiment.task),
        data=DataConfig(
            classes=data.classes,
            missing=data.missing,
            canvas_hw=data.canvas_hw,
            rgb=data.rgb,
            thermal=data.thermal,
            event=data.event,
            event_channels=data.event_channels,
        ),
        model=experiment.model,
        optim=SGDConfig(),
        train=TrainConfig(
            precision=experiment.train.precision,
            activation_checkpointing=experiment.train.activation_checkpointing,
        ),
    )


def _canonical_task(task: Task) -> Task:
    match task:
        case DetectionTask():
            return DetectionTask()
        case SegmentationTask(levels=levels):
            return SegmentationTask(levels=levels)  # the head has outputs for them
        case CustomTask():
            return task
        case unreachable:
            assert_never(unreachable)


def parts_of(experiment: Experiment, make_head: MakeHead | None = None) -> tuple[Part, ...]:
    """All parameters in the order of the forward pass, a stage's blocks after the rest of the stage.

    Raises:
        ConfigError: the model cannot be built.
    """
    return _counts_of(canonical(experiment), make_head)[0]


def least_images(experiment: Experiment, world_size: int, make_head: MakeHead | None = None) -> int:
    """Images that a micro-batch must have: those that the head needs, unless its batch norms see all workers'.

    Raises:
        ConfigError: the model cannot be built.
    """
    if experiment.train.sync_batch_norm and world_size > 1:
        return 1
    return _counts_of(canonical(experiment), make_head)[1]


@lru_cache(maxsize=64)
def _counts_of(experiment: Experiment, make_head: MakeHead | None) -> tuple[tuple[Part, ...], int]:
    """The parts, and the least number of images in a micro-batch."""
    with torch.device("meta"):
        model = build_model(experiment, make_head)
    parts: list[Part] = []
    for section in model.sections():
        for stage in section.streams:
            blocks = [block for group in stage.groups for block in group.blocks]
            in_blocks = {parameter for block in blocks for parameter in block.parameters()}
            rest = (parameter for parameter in stage.module.parameters() if parameter not in in_blocks)
            parts.append(Part(stage.name, _shapes(rest)))
            for group in stage.groups:
                parts.append(Part(group.name, _shapes(group.blocks[0].parameters()), count=len(group.blocks)))
        parts.append(Part(section.fusion_name, _shapes(section.fusion.parameters())))
    parts.append(Part(NECK, _shapes(model.neck.parameters())))
    parts.append(Part(HEAD, _shapes(model.head.parameters())))
    total_bytes = PARAMETER_BYTES * sum(parameter.numel() for parameter in model.parameters())
    assert sum(part.whole_bytes for part in parts) == total_bytes, "a parameter is in no part or in two"
    return tuple(parts), model.head.least_images


def _shapes(parameters: Iterable[nn.Parameter]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(parameter.shape) for parameter in parameters)


def state_copies(optim: Optimizer) -> int:
    """Number of tensors kept per parameter: SGD's momentum or Adam's two moments, and the weights' average."""
    num_averages = 0 if optim.ema_decay is None else 1
    match optim:
        case SGDConfig(momentum=momentum):
            return num_averages + (1 if momentum else 0)
        case AdamWConfig():
            return num_averages + 2
        case unreachable:
            assert_never(unreachable)


def update_copies(optim: Optimizer, *, is_sharded: bool) -> int:
    """Number of temporary tensors per parameter during an update; fused kernels need none.

    Fused SGD does not support sharded parameters; the foreach variant adds the weight decay to a copy of the gradient.
    """
    return 1 if is_sharded and isinstance(optim, SGDConfig) and optim.weight_decay else 0

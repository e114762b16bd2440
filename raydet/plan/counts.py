"""What lasts: parameters, their shards, gradients, optimizer state; exact, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import assert_never

import torch
from torch import nn

from raydet.config import AdamWConfig, DataConfig, Experiment, Optimizer, SGDConfig, TrainConfig
from raydet.models.build import build_detector
from raydet.plan.sections import HEAD, NECK, StreamStage, sections_of

PARAMETER_BYTES = 4
"""Weights, gradients and optimizer state are fp32 in every precision."""


@dataclass(frozen=True, slots=True)
class Part:
    """Parameters that are gathered together when the model is sharded; `count` parts are alike."""

    place: str
    shapes: tuple[tuple[int, ...], ...]
    count: int = 1

    @property
    def unit_bytes(self) -> int:
        """One of them, whole."""
        return PARAMETER_BYTES * sum(map(math.prod, self.shapes))

    @property
    def whole_bytes(self) -> int:
        """All of them."""
        return self.count * self.unit_bytes

    def shard_bytes(self, shards: int) -> int:
        """What one rank holds: each parameter is cut along its first dimension and the last pieces are padded.

        >>> Part("stage", shapes=((5, 3), (8,))).shard_bytes(4)
        32
        """
        rows = (math.ceil(shape[0] / shards) * math.prod(shape[1:]) for shape in self.shapes)
        return self.count * PARAMETER_BYTES * sum(rows)


def essence(experiment: Experiment) -> Experiment:
    """The experiment without anything that has no influence on a step's memory: equal ones are measured once."""
    data = experiment.data
    return Experiment(
        name="",
        data=DataConfig(
            classes=data.classes,
            missing=data.missing,
            canvas_hw=data.canvas_hw,
            rgb=data.rgb,
            thermal=data.thermal,
            event=data.event,
        ),
        model=experiment.model,
        optim=SGDConfig(),
        train=TrainConfig(
            precision=experiment.train.precision,
            activation_checkpointing=experiment.train.activation_checkpointing,
        ),
    )


def parts_of(experiment: Experiment) -> tuple[Part, ...]:
    """All parameters, in the order of the forward pass; a stage's blocks come after the rest of the stage.

    Raises:
        ConfigError: the model cannot be built.
    """
    return _parts_of(essence(experiment))


@lru_cache(maxsize=64)
def _parts_of(experiment: Experiment) -> tuple[Part, ...]:
    with torch.device("meta"):
        detector = build_detector(experiment)
    parts: list[Part] = []
    for section in sections_of(detector):
        for stage in section.streams:
            parts += _stage_parts(stage)
        parts.append(Part(section.fusion_name, _shapes(section.fusion.parameters())))
    parts.append(Part(NECK, _shapes(detector.neck.parameters())))
    parts.append(Part(HEAD, _shapes(detector.head.parameters())))
    total_bytes = PARAMETER_BYTES * sum(parameter.numel() for parameter in detector.parameters())
    assert sum(part.whole_bytes for part in parts) == total_bytes, "a parameter is in no part, or in two"
    return tuple(parts)


def _stage_parts(stage: StreamStage) -> list[Part]:
    blocks = [block for run in stage.runs for block in run.blocks]
    inside = {parameter for block in blocks for parameter in block.parameters()}
    rest = (parameter for parameter in stage.module.parameters() if parameter not in inside)
    return [
        Part(stage.name, _shapes(rest)),
        *(Part(run.name, _shapes(run.blocks[0].parameters()), count=len(run.blocks)) for run in stage.runs),
    ]


def _shapes(parameters: Iterable[nn.Parameter]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(parameter.shape) for parameter in parameters)


def state_copies(optim: Optimizer) -> int:
    """Tensors of a parameter's size that are kept: momentum, or the two moments of Adam, and the weights' average."""
    num_averages = 0 if optim.ema_decay is None else 1
    match optim:
        case SGDConfig(momentum=momentum):
            return num_averages + (1 if momentum else 0)
        case AdamWConfig():
            return num_averages + 2
        case unreachable:
            assert_never(unreachable)


def update_copies(optim: Optimizer, *, is_sharded: bool) -> int:
    """Tensors of a parameter's size that an update makes and drops: fused kernels need none.

    Fused SGD does not take sharded parameters; the foreach variant adds the weight decay to a copy of the gradient.
    """
    return 1 if is_sharded and isinstance(optim, SGDConfig) and optim.weight_decay else 0

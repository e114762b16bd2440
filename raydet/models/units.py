"""The parts of a detector that are wrapped one by one when it is spread over memory and machines.

What is done with them (recomputing, compiling, sharding) is decided in `raydet.parallel`, which does not know models.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from raydet.models.detector import Detector


@dataclass(frozen=True, slots=True)
class Units:
    """Modules that are called as wholes: outside of its unit's forward pass nothing touches a unit's parameters."""

    blocks: list[nn.Module]
    """Of the trunks: many, in the order of their calls."""
    fusions: list[nn.Module]
    """One per stage."""
    rest: list[nn.Module]
    """Neck and head. What stands before and behind the blocks of a stage is too small to matter."""


def units_of(detector: Detector) -> Units:
    """The units of a detector; they do not overlap."""
    encoder = detector.encoder
    blocks = [block for stage in encoder.stages() for run in stage.block_runs() for block in run]
    return Units(
        blocks=[block for block in blocks if has_parameters(block)],
        fusions=[fusion for fusion in encoder.fusions if has_parameters(fusion)],
        rest=[detector.neck, detector.head],
    )


def has_parameters(module: nn.Module) -> bool:
    """Some fusions, and poolings among a stage's layers, have nothing to learn."""
    return any(True for _ in module.parameters())

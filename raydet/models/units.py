"""The parts of a detector that are wrapped one by one when it is spread over memory and machines.

What is done with them (recomputing, compiling, sharding) is decided in `raydet.parallel`, which does not know models.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from raydet.models.backbones.mit import Block
from raydet.models.detector import Detector


@dataclass(frozen=True, slots=True)
class Units:
    """Modules that are called as wholes: outside of its unit's forward pass nothing touches a unit's parameters."""

    blocks: list[nn.Module]
    """Transformer blocks: many, alike, without random choices and without running statistics."""
    fusions: list[nn.Module]
    """One per stage."""
    rest: list[nn.Module]
    """Neck and head. Patch embeddings and the norms behind the stages are too small to matter."""


def units_of(detector: Detector) -> Units:
    """The units of a detector; they do not overlap."""
    encoder = detector.encoder
    stages = [*encoder.rgb_stages, *encoder.aux_stages]
    return Units(
        blocks=[module for stage in stages for module in stage.modules() if isinstance(module, Block)],
        fusions=[fusion for fusion in encoder.fusions if any(True for _ in fusion.parameters())],
        rest=[detector.neck, detector.head],
    )

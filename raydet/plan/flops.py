"""Floating-point operations of a forward pass, counted on meta tensors.

Convolutions, matrix products and attention are counted as this code computes them, a multiply-add as two. Operations
with a few FLOPs per value, or whose number depends on values, are left out: norms, activations, resizing, pooling of
boxes, NMS.

The head is counted in evaluation mode for an image with the maximal number of proposals. A training step costs about
three forward passes; the backward pass is not counted, because PyTorch's counter overstates depthwise convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from raydet.config import Experiment
from raydet.models.build import MakeHead, build_model
from raydet.plan.counts import canonical


def forward_flops(experiment: Experiment, make_head: MakeHead | None = None) -> dict[str, int]:
    """Operations per image on the canvas: `total`, then of each part; the parts sum to the total.

    Args:
        make_head: see `build_model`.

    Raises:
        ConfigError: the model cannot be built.
    """
    return dict(_forward_flops(canonical(experiment), make_head))


@lru_cache(maxsize=64)
def _forward_flops(experiment: Experiment, make_head: MakeHead | None) -> dict[str, int]:
    with torch.device("meta"), torch.no_grad():
        model = build_model(experiment, make_head).eval()
        streams = [
            torch.empty(1, sum(stream.num_channels.values()), *experiment.data.canvas_hw)
            for stream in (model.rgb_input, model.aux_input)
        ]
        maps, encoder = _counted(lambda: model.encoder(*streams).maps)
        pyramid, neck = _counted(lambda: model.neck(maps))
        head = {name: _counted(part)[1] for name, part in model.head.parts(pyramid).items()}
    parts = {"encoder": encoder, **({"fpn": neck} if neck else {}), **head}
    return {"total": sum(parts.values()), **parts}


def _counted(part: Callable[[], Any]) -> tuple[Any, int]:
    """The output of a part of the model, and its operations."""
    with FlopCounterMode(display=False) as counter:
        result = part()
    return result, int(counter.get_total_flops())

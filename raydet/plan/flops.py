"""Floating-point operations of a forward pass, counted on tensors without memory.

Counted are convolutions, matrix products and attention, as this code computes them, a multiplication and its addition
as two. Left out is what has a few operations per value or depends on values: norms, activations, resizing, pooling of
boxes, NMS.

The head is counted as at test, for an image that fills its quota of proposals. A training step costs about three times
a forward pass; PyTorch's counter is not asked for the backward pass, because it overstates depthwise convolutions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from raydet.config import Experiment
from raydet.models.build import build_detector
from raydet.models.detector import Detector
from raydet.models.heads.box import ROI_CELLS
from raydet.plan.counts import essence


def forward_flops(experiment: Experiment) -> dict[str, int]:
    """Operations per image on the canvas: `total`, then each part; the parts sum to the total.

    Raises:
        ConfigError: the model cannot be built.
    """
    return dict(_forward_flops(essence(experiment)))


@lru_cache(maxsize=64)
def _forward_flops(experiment: Experiment) -> dict[str, int]:
    with torch.device("meta"), torch.no_grad():
        detector = build_detector(experiment).eval()
        streams = [
            torch.empty(1, sum(stream.num_channels.values()), *experiment.data.canvas_hw)
            for stream in (detector.rgb_input, detector.aux_input)
        ]
        maps, encoder = _counted(lambda: detector.encoder(*streams).maps)
        pyramid, neck = _counted(lambda: list(detector.neck(maps).values()))
        _, rpn = _counted(lambda: detector.head.rpn.head(pyramid))
        _, roi_heads = _counted(lambda: _boxes(detector, pyramid))
    parts = {"encoder": encoder, "fpn": neck, "rpn": rpn, "roi_heads": roi_heads}
    return {"total": sum(parts.values()), **parts}


def _counted(part: Callable[[], list[Tensor]]) -> tuple[list[Tensor], int]:
    """What a part of the detector returns, and its operations."""
    with FlopCounterMode(display=False) as counter:
        result = part()
    return result, int(counter.get_total_flops())


def _boxes(detector: Detector, pyramid: Sequence[Tensor]) -> list[Tensor]:
    """Classes and boxes of as many proposals as there can be."""
    rpn, heads = detector.head.rpn, detector.head.roi_heads
    anchors = [x_BCHW.shape[2] * x_BCHW.shape[3] * rpn.num_ratios for x_BCHW in pyramid]
    candidates = sum(min(rpn.pre_nms_top_n[1], count) for count in anchors)
    proposals = min(rpn.post_nms_top_n[1], candidates)
    pooled = torch.empty(proposals, pyramid[0].shape[1], ROI_CELLS, ROI_CELLS)
    return list(heads.box_predictor(heads.box_head(pooled)))

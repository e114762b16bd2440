"""Images with detected boxes, all modalities side by side.

Legend: C channels, H W height and width.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.utils import draw_bounding_boxes

from raydet.structures import Sample


def draw_boxes(sample: Sample, rows: NDArray[np.float64], classes: Sequence[str]) -> Tensor:
    """Draw detections on every modality: uint8 [3, H, W * modalities].

    Args:
        sample: without padding, in source pixels.
        rows: [N, 7] detections, see `raydet.metrics.coco`.
    """
    boxes_xyxy = torch.from_numpy(np.concatenate([rows[:, 1:3], rows[:, 1:3] + rows[:, 3:5]], axis=1))
    labels = [f"{classes[int(row[6])]} {row[5]:.2f}" for row in rows]
    images = []
    for x_CHW in sample.modalities.values():
        image = as_colours(x_CHW)
        images.append(draw_bounding_boxes(image, boxes_xyxy, labels, colors="lime") if labels else image)
    return torch.cat(images, dim=2)


def as_colours(x_CHW: Tensor) -> Tensor:
    """Convert uint8 in 0..255 or float32 in 0..1 to uint8 [3, H, W]; unless there are three channels, their mean."""
    scaled = x_CHW.float() if x_CHW.dtype == torch.uint8 else x_CHW * 255
    if len(scaled) != 3:
        scaled = scaled.mean(dim=0, keepdim=True).expand(3, -1, -1)
    return scaled.round().to(torch.uint8)

"""Images with bright rectangles on black, the same in all modalities, and where a box's rectangle is found again."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from raydet.structures import Boxes, Sample

CHANNELS = {"rgb": 3, "thermal": 1, "event": 4}


def scene(
    size_hw: tuple[int, int],
    boxes: list[list[float]],
    image_id: str = "a",
    *,
    floats: tuple[str, ...] = ("event",),
) -> Sample:
    """The k-th rectangle has the brightness 255 - 40 k.

    Args:
        floats: modalities that are float32 in 0..1; the others are uint8.
    """
    plane = torch.zeros(1, *size_hw, dtype=torch.uint8)
    for number, (x1, y1, x2, y2) in enumerate(boxes):
        plane[:, int(y1) : int(y2), int(x1) : int(x2)] = 255 - 40 * number
    return Sample(
        image_id=image_id,
        group_id="",
        modalities={
            name: plane.expand(count, -1, -1) / 255 if name in floats else plane.expand(count, -1, -1)
            for name, count in CHANNELS.items()
        },
        target=Boxes(torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.arange(len(boxes))),
        source_hw=size_hw,
        valid_hw=size_hw,
    )


@st.composite
def scenes(draw: st.DrawFn, *, sides: tuple[int, int] = (40, 90)) -> Sample:
    """Two rectangles, in the left and in the right half, with a gap between them."""
    height, width = draw(st.integers(*sides)), draw(st.integers(*sides))
    boxes = []
    for left, right in ((0, width // 2 - 3), (width // 2 + 3, width)):
        y1, x1 = draw(st.integers(0, height - 9)), draw(st.integers(left, right - 9))
        y2, x2 = draw(st.integers(y1 + 8, height)), draw(st.integers(x1 + 8, right))
        boxes.append([float(x1), float(y1), float(x2), float(y2)])
    floats = draw(st.sampled_from([(), ("event",), ("rgb", "thermal", "event")]))
    return scene((height, width), boxes, str(draw(st.integers(0, 9999))), floats=floats)


def extent_within(plane: Tensor, box_xyxy: Tensor, margin: float = 2.0) -> list[float]:
    """Box of what is at least half as bright as the brightest, in and around a box; the image is cut there."""
    x1, y1, x2, y2 = (int(v) for v in (*(box_xyxy[:2] - margin).clamp(min=0), *(box_xyxy[2:] + margin)))
    part = plane[y1:y2, x1:x2].float()
    rows, columns = torch.nonzero(part >= 0.5 * part.max(), as_tuple=True)
    return [
        float(columns.min()) + x1,
        float(rows.min()) + y1,
        float(columns.max()) + 1 + x1,
        float(rows.max()) + 1 + y1,
    ]

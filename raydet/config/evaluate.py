"""What is measured of a detector. Two runs are compared by the same measures only."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from raydet.config.base import Config

COCO_BINS_PX = (32.0, 96.0)

Edge = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class EvaluateConfig(Config):
    """The metrics beside mAP."""

    size_bins_px: tuple[Edge, Edge] = COCO_BINS_PX
    """Where small ends and large begins for mAP_small ... AR_large: sides of a square of the same area, in source
    pixels. The default is COCO's, made for images of about 480 x 640."""
    size_bins_fraction: tuple[Edge, Edge] | None = None
    """The same as parts of the square root of the image's area, so that a bin is the same share of the image at
    every resolution; takes the place of `size_bins_px`. COCO's bins are about (0.058, 0.173) of its images."""
    miss_rate: bool = False
    """Add LAMR, the log-average miss rate (0..1, lower is better), as the mean over the classes. Data sources know no
    regions to ignore: figures of KAIST's own protocol come from `raydet score kaist`."""
    miss_rate_min_height_px: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 55.0
    """Lower objects (source pixels) need not be found for LAMR, and finding them is no mistake. KAIST's "reasonable"
    set has 55."""

    @model_validator(mode="after")
    def _bins_ascend(self) -> Self:
        for name in ("size_bins_px", "size_bins_fraction"):
            edges = getattr(self, name)
            if edges is not None and edges[0] >= edges[1]:
                raise ValueError(f"evaluate.{name} wants two ascending numbers, got {list(edges)}")
        if self.size_bins_fraction is not None and self.size_bins_px != COCO_BINS_PX:
            raise ValueError(
                "evaluate.size_bins_px and evaluate.size_bins_fraction exclude one another; set one"
            )
        return self

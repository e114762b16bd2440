"""Size bins: small, medium and large objects."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from raydet.config import DetectionTask

LARGEST_AREA = 1e10
"""pycocotools' bound of all sizes."""


@dataclass(frozen=True, slots=True)
class SizeBins:
    """Sides of two squares: objects up to the area of the first are small, from that of the second on they are large.

    An area on an edge is in both bins, as in pycocotools.
    """

    edges: tuple[float, float] = (32.0, 96.0)
    unit: Literal["px", "fraction"] = "px"
    """Source pixels, or fractions of the square root of the image's area."""

    @classmethod
    def of(cls, config: DetectionTask) -> Self:
        if config.size_bins_fraction is not None:
            return cls(config.size_bins_fraction, "fraction")
        return cls(config.size_bins_px)

    def ranges(self) -> NDArray[np.float64]:
        """Smallest and largest area of all, small, medium and large objects: [4, 2], in squared units."""
        small, large = (edge**2 for edge in self.edges)
        return np.array([[0.0, LARGEST_AREA], [0.0, small], [small, large], [large, LARGEST_AREA]])

    def in_units(
        self,
        areas_N: NDArray[np.float64],
        image_index_N: NDArray[np.int64],
        sizes_hw: NDArray[np.int64] | NDArray[np.float64] | None,
    ) -> NDArray[np.float64]:
        """Convert areas from px^2 to squared units; fractions need `sizes_hw`, [I, 2] in source pixels."""
        if self.unit == "px":
            return areas_N
        if sizes_hw is None:
            raise ValueError("size bins that are fractions of the image need the images' sizes")
        return areas_N / sizes_hw.astype(float).prod(axis=1)[image_index_N]

    def as_json(self) -> dict[str, object]:
        return {"unit": self.unit, "edges": list(self.edges)}

    def __str__(self) -> str:
        unit = "px²" if self.unit == "px" else "of the image's"
        small, large = (f"{edge:g}² {unit}" for edge in self.edges)
        return f"small up to an area of {small}, large from {large} on"


COCO_BINS = SizeBins()

"""Counts of the pixels of a mask, and findings: noise of the labels, masks without a label.

Legend: H W mask, K classes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from raydet.check.findings import Finding
from raydet.structures import ANOMALY, IGNORE

SPECKLED_SHARE = 0.004
"""Smallest share of isolated pixels of a speckled mask. 130 masks of CamVid have at most 0.0018, and 0.0029 after
halving with the nearest value; halved with interpolation they have 0.012 in the median, as JPEG 0.018."""


@dataclass(slots=True)
class MaskCounts:
    """Sums over one or many masks."""

    pixels_K: NDArray[np.int64]
    """Pixels of each class."""
    images_K: NDArray[np.int64]
    """Masks in which the class occurs."""
    unlabelled: int = 0
    anomalous: int = 0
    isolated: int = 0
    """Pixels of a class that none of the four neighbours has, though all of these are labelled."""
    border: int = 0
    """Labelled pixels whose right or lower neighbour has another class."""
    masks: int = 1
    by_side: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Pixels of each class by part of the split."""

    @property
    def labelled(self) -> int:
        return int(self.pixels_K.sum())

    def add(self, other: MaskCounts, sides: tuple[str, ...]) -> None:
        """Add one mask, which is in these parts of the split."""
        self.pixels_K += other.pixels_K
        self.images_K += other.images_K
        self.unlabelled += other.unlabelled
        self.anomalous += other.anomalous
        self.isolated += other.isolated
        self.border += other.border
        self.masks += other.masks
        for side in sides:
            self.by_side[side] = self.by_side.get(side, 0) + other.pixels_K


def no_masks(num_classes: int) -> MaskCounts:
    """Counts to which masks are added."""
    return MaskCounts(np.zeros(num_classes, np.int64), np.zeros(num_classes, np.int64), masks=0)


def mask_counts(ids_HW: NDArray[np.integer], num_classes: int) -> MaskCounts:
    """The counts of a mask.

    Args:
        ids_HW: 0..K-1, IGNORE or ANOMALY.
    """
    counts = np.bincount(ids_HW.ravel(), minlength=IGNORE + 1)
    pixels_K = counts[:num_classes].astype(np.int64)
    has_other = np.zeros(ids_HW.shape, bool)
    differs_down = ids_HW[1:] != ids_HW[:-1]
    differs_right = ids_HW[:, 1:] != ids_HW[:, :-1]
    is_labelled = (ids_HW != IGNORE) & (ids_HW != ANOMALY)
    has_other[:-1] |= differs_down & is_labelled[1:]
    has_other[:, :-1] |= differs_right & is_labelled[:, 1:]
    # Only pixels with four neighbours: at the rim of an image, thin things are cut off.
    is_alone = is_labelled[1:-1, 1:-1].copy()
    for differs, labelled in (
        (differs_down[:-1, 1:-1], is_labelled[:-2, 1:-1]),
        (differs_down[1:, 1:-1], is_labelled[2:, 1:-1]),
        (differs_right[1:-1, :-1], is_labelled[1:-1, :-2]),
        (differs_right[1:-1, 1:], is_labelled[1:-1, 2:]),
    ):
        is_alone &= differs & labelled
    return MaskCounts(
        pixels_K=pixels_K,
        images_K=(pixels_K > 0).astype(np.int64),
        unlabelled=int(counts[IGNORE]),
        anomalous=int(counts[ANOMALY]),
        isolated=int(is_alone.sum()),
        border=int((has_other & is_labelled).sum()),
    )


def mask_findings(counts: MaskCounts, index: int, image_id: str) -> Iterator[Finding]:
    """Findings about one mask."""
    if not counts.labelled and not counts.anomalous:
        yield Finding("mask_empty", image_id, "no pixel has a label", index)
    elif counts.isolated > SPECKLED_SHARE * counts.labelled:
        detail = (
            f"{counts.isolated} of {counts.labelled} labelled pixels differ from all neighbours; "
            f"{counts.border} are at a border"
        )
        yield Finding("mask_speckled", image_id, detail, index, badness=counts.isolated / counts.labelled)

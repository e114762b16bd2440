"""An embedded set whose test images show what no class describes, with planted answers: scenes of `raydet.data.tree`
in RGB, and in every second test image one strange object, which is

- far: purple, a hue that no class has, with diagonal stripes, or
- near: the hue of one bucket with stripes that only another bucket has: green or blue with stripes of discs.

Far and near ones take turns; the first test image is covered by a far one almost entirely. About one pixel in a hundred
of the others is strange. Strange pixels are as bright as the rest in the mean, so that brightness tells nothing.

`is_near` and `is_far` tell which pixels these are. No loader reads them. Images to train, to validate and to calibrate
on have none.

Legend: H W height and width.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from raydet.data.randomness import Draws
from raydet.data.sources.base import Targets
from raydet.data.tree import (
    BUCKETS,
    HUES,
    SIDE,
    SIZE_HW,
    STRIPES,
    Bools,
    Ints,
    Texture,
    TreeSet,
    seams,
    stripes,
)
from raydet.structures import ANOMALY, IGNORE, Mask

PARTS = ("train", "val", "calibration", "test")
FAR_HUE = (152, 44, 144)
FAR_PERIOD = 6
NEAR_HUES = ("square", "bar")
NEAR_TEXTURES: dict[str, tuple[Texture, ...]] = {
    "square": ((4, "columns"), (8, "rows")),
    "bar": ((8, "rows"), (8, "columns")),
}
"""By the bucket of the hue: stripes of discs which that bucket does not have."""
SIDES = (14, 20)
WHOLE_SIDE = SIDE - 2


@dataclass(frozen=True, slots=True)
class _Stranger:
    is_far: bool
    place: tuple[slice, slice]
    colours_3HW: Ints


class StrangeSet(TreeSet):
    """A data set that is rendered image by image on reading. Ids begin with the part to which an image belongs.

    Args:
        sizes: number of images of each of `PARTS`.
    """

    def __init__(self, sizes: tuple[int, int, int, int], *, seed: int, missing: Collection[str] = ()) -> None:
        super().__init__(num_images=sum(sizes), has_thermal=False, seed=seed, missing=missing)
        self.image_ids = [
            f"{part}/strange_{number:05d}"
            for part, size in zip(PARTS, sizes, strict=True)
            for number in range(size)
        ]
        self.group_ids = self.image_ids
        self._first_test = sum(sizes[:-1])

    def targets(self, index: int) -> Targets:
        target, size_hw = super().targets(index)
        stranger = self._stranger(index)
        if stranger is None:
            return target, size_hw
        ids_HW = self.ids(index)
        ids_HW[stranger.place] = ANOMALY
        ids_HW[seams(ids_HW)] = IGNORE
        return Mask(torch.from_numpy(ids_HW)), size_hw

    def is_near(self, index: int) -> Bools:
        """bool [H, W]: pixels of near objects, with their seams."""
        return self._covered(index, is_far=False)

    def is_far(self, index: int) -> Bools:
        """bool [H, W]: pixels of far strange objects, with their seams; not those of the classes' far objects."""
        return self._covered(index, is_far=True)

    def _covered(self, index: int, *, is_far: bool) -> Bools:
        covered_HW = np.zeros(SIZE_HW, bool)
        stranger = self._stranger(index)
        if stranger is not None and stranger.is_far == is_far:
            covered_HW[stranger.place] = True
        return covered_HW

    def scene(self, index: int) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
        rgb_3HW, thermal_HW = super().scene(index)
        stranger = self._stranger(index)
        if stranger is not None:
            rgb_3HW[:, stranger.place[0], stranger.place[1]] = stranger.colours_3HW
        return rgb_3HW, thermal_HW

    def _stranger(self, index: int) -> _Stranger | None:
        number = index - self._first_test
        if number < 0 or number % 2:
            return None
        draws = Draws(self._seed, index, "stranger")
        is_far = number % 4 == 0
        side = WHOLE_SIDE if number == 0 else draws.integer(*SIDES)
        top, left = draws.integer(0, SIDE - side), draws.integer(0, SIDE - side)
        tint, phase = [draws.integer(-10, 10) for _ in range(3)], draws.integer(0, 7)
        if is_far:
            position = np.add.outer(np.arange(side), np.arange(side)) + phase
            texture_HW = np.where(position % FAR_PERIOD < FAR_PERIOD // 2, STRIPES, -STRIPES)
            hue = FAR_HUE
        else:
            bucket = NEAR_HUES[draws.integer(0, 1)]
            texture_HW = stripes(NEAR_TEXTURES[bucket][draws.integer(0, 1)], (side, side), phase)
            hue = HUES[BUCKETS.index(bucket)]
        colours_3HW = np.add(hue, tint)[:, None, None] + texture_HW
        place = slice(top, top + side), slice(left, left + side)
        return _Stranger(is_far, place, colours_3HW.astype(np.int32))

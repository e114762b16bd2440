"""An embedded set of masks with a class tree and planted answers: what can be told of each pixel is known.

Objects lie on a grey ground, 96 x 96. The tree, with leaves in label order:

    movable   disc     4 leaves    red discs
              square   2 leaves    green squares
    fixed     bar      2 leaves    blue bars
              ground   1 leaf      grey

A bucket (disc, square, bar, ground) has a hue and a family of shapes, a leaf the period and direction of its stripes.
Pixels at the seams of objects have no label. Leaves are as unequal as 20 : 1.

**Far objects**, a third, carry the mean texture of their bucket, which is none; their leaf is drawn evenly. So the
bucket of every pixel is certain, and of the leaf no model can know more than

    accuracy on leaves          disc    square    bar    ground
    near                        1       1         1      1
    far                         1/4     1/2       1/2    -

`is_far` tells which pixels these are. No loader reads it.

**With thermal**, leaves differ by stripes (RGB), by heat (thermal) or by both, and a third of the images are nights, in
which RGB is black: its pixels are noise. The stripes of discs tell two pairs apart and heat the leaves of a pair;
squares are all warm and differ in stripes, bars all have the same stripes and differ in heat. Thermal shows shapes, and
so buckets, by day and night; far objects show their heat. Best accuracies on objects as drawn, by `best_accuracy`:

    leaves (buckets)            all            near by day    near by night    far by day    far by night
    rgb                         .43 (.67)      .81 (1)        0 (0)            .31 (1)       0 (0)
    thermal                     .62 (1)        .66 (1)        .66 (1)          .53 (1)       .53 (1)
    both                        .77 (1)        1 (1)          .66 (1)          .53 (1)       .53 (1)

(RGB at night knows nothing, and its best guess for any pixel is ground.)

The bytes are the same on every machine: all arithmetic is on integers, and all draws are keyed bits, as in
`raydet.data.synthetic`.

Legend: H W height and width.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydet.config.tree import TREE_CLASSES, TREE_LEVELS
from raydet.data.randomness import Draws
from raydet.data.sources.base import Targets
from raydet.data.synthetic import as_image, sensor_noise, smooth_texture
from raydet.files.classes import Colour
from raydet.structures import IGNORE, Mask, Sample

SIDE = 96
SIZE_HW = (SIDE, SIDE)
GAP = 3
"""Minimum distance between objects, so that seams do not meet."""
GROUND = len(TREE_CLASSES) - 1
BUCKETS, BUCKET_OF = TREE_LEVELS[0].groups, TREE_LEVELS[0].parents
COLOURS: tuple[Colour, ...] = (
    *((230, 80, 60), (180, 30, 30), (250, 150, 110), (120, 20, 40)),
    *((70, 190, 90), (20, 110, 50)),
    *((80, 120, 240), (30, 50, 150)),
    (128, 128, 128),
)
NEAR_WEIGHTS = (40, 24, 12, 8, 16, 6, 5, 1)
"""Of the leaves of near objects; far ones have the buckets of these, with even leaves."""
FAR_PERCENT = 33
NIGHT_EVERY = 3
HUES = ((172, 92, 84), (86, 156, 92), (84, 102, 176))
"""RGB of the buckets, before an object's own tint."""
STRIPES = 34
"""Height of the stripes above and below the mean."""
HEAT = 60
ATTEMPTS = (16, 24)

Direction = Literal["rows", "columns"]
Texture = tuple[int, Direction]
"""Period in pixels and what the stripes run along."""

TEXTURES: tuple[Texture, ...] = (
    *((4, "rows"), (4, "columns"), (8, "rows"), (8, "columns")),
    *((4, "rows"), (8, "columns")),
    *((4, "columns"), (4, "rows")),
)
"""By leaf, without thermal."""
THERMAL_TEXTURES: tuple[Texture, ...] = (
    *((4, "rows"), (8, "columns"), (4, "rows"), (8, "columns")),
    *((4, "rows"), (8, "columns")),
    *((4, "columns"), (4, "columns")),
)
"""By leaf, with thermal."""
IS_WARM = (True, True, False, False, True, True, True, False)

Ints = NDArray[np.int32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Object:
    leaf: int
    is_far: bool
    top: int
    left: int
    shape: Bools
    tint: tuple[int, int, int]
    phase: int

    @property
    def place(self) -> tuple[slice, slice]:
        height, width = self.shape.shape
        return slice(self.top, self.top + height), slice(self.left, self.left + width)


class TreeSet:
    """A data set that is rendered image by image on reading.

    Args:
        has_thermal: see above.
        missing: modalities to leave out.
    """

    def __init__(
        self, *, num_images: int, has_thermal: bool, seed: int, missing: Collection[str] = ()
    ) -> None:
        self.classes, self.levels, self.colours = TREE_CLASSES, TREE_LEVELS, COLOURS
        self.modalities = tuple(
            name for name in (("rgb", "thermal") if has_thermal else ("rgb",)) if name not in missing
        )
        self.image_ids = [f"tree_{index:05d}" for index in range(num_images)]
        self.group_ids = self.image_ids  # images have nothing in common
        self._has_thermal, self._seed = has_thermal, seed

    def __len__(self) -> int:
        return len(self.image_ids)

    def read(self, index: int) -> Sample:
        rendered = self._render(index)
        target, _ = self.targets(index)
        return Sample(
            image_id=self.image_ids[index],
            group_id=self.group_ids[index],
            modalities={name: rendered[name] for name in self.modalities},
            target=target,
            source_hw=SIZE_HW,
            valid_hw=SIZE_HW,
        )

    def targets(self, index: int) -> Targets:
        ids_HW = self.ids(index)
        ids_HW[seams(ids_HW)] = IGNORE
        return Mask(torch.from_numpy(ids_HW)), SIZE_HW

    def ids(self, index: int) -> NDArray[np.uint8]:
        """The leaf of every pixel, at seams as well: uint8 [H, W]."""
        ids_HW = np.full(SIZE_HW, GROUND, np.uint8)
        for each in self._objects(index):
            ids_HW[each.place][each.shape] = each.leaf
        return ids_HW

    def is_far(self, index: int) -> Bools:
        """bool [H, W]: pixels of far objects, with their seams."""
        far_HW = np.zeros(SIZE_HW, bool)
        for each in self._objects(index):
            far_HW[each.place] |= each.shape & each.is_far
        return far_HW

    def is_night(self, index: int) -> bool:
        """Whether the RGB image shows nothing."""
        return self._has_thermal and index % NIGHT_EVERY == 1

    def _objects(self, index: int) -> list[_Object]:
        draws = Draws(self._seed, index, "objects")
        taken_HW = np.zeros(SIZE_HW, bool)
        placed: list[_Object] = []
        for _ in range(draws.integer(*ATTEMPTS)):
            each = _draw_object(draws)
            rows, columns = each.place
            margin = (
                slice(max(0, rows.start - GAP), rows.stop + GAP),
                slice(max(0, columns.start - GAP), columns.stop + GAP),
            )
            if not taken_HW[margin].any():
                taken_HW[each.place] = True
                placed.append(each)
        return placed

    def _render(self, index: int) -> dict[str, Tensor]:
        rgb_3HW, thermal_HW = self.scene(index)
        noise = Draws(self._seed, index, "noise")
        return {
            "rgb": as_image(rgb_3HW + sensor_noise(noise, rgb_3HW.shape)),
            "thermal": as_image((thermal_HW + sensor_noise(noise, SIZE_HW))[None]),
        }

    def scene(self, index: int) -> tuple[Ints, Ints]:
        """RGB [3, H, W] and thermal [H, W] without noise."""
        draws = Draws(self._seed, index, "ground")
        rgb_3HW = 112 + np.stack([smooth_texture(draws, SIZE_HW, 24) * 20 // 256 - 10] * 3)
        thermal_HW = 110 + smooth_texture(draws, SIZE_HW, 32) * 24 // 256 - 12
        textures = THERMAL_TEXTURES if self._has_thermal else TEXTURES
        for each in self._objects(index):
            hue_3 = np.add(HUES[BUCKET_OF[each.leaf]], each.tint)[:, None, None]
            texture = 0 if each.is_far else stripes(textures[each.leaf], each.shape.shape, each.phase)
            rgb_3HW[:, each.place[0], each.place[1]] = np.where(
                each.shape, hue_3 + texture, rgb_3HW[:, each.place[0], each.place[1]]
            )
            thermal_HW[each.place] += np.where(each.shape, HEAT if IS_WARM[each.leaf] else -HEAT, 0)
        if self.is_night(index):
            rgb_3HW = np.full_like(rgb_3HW, 8)
        return rgb_3HW, thermal_HW


def _draw_object(draws: Draws) -> _Object:
    leaf, is_far = _weighted(draws, NEAR_WEIGHTS), draws.chance(FAR_PERCENT)
    bucket = BUCKET_OF[leaf]
    if is_far:  # the same bucket, any of its leaves
        leaf = draws.integer(BUCKET_OF.index(bucket), BUCKET_OF.index(bucket + 1) - 1)
    shape = _draw_shape(draws, bucket)
    return _Object(
        leaf=leaf,
        is_far=is_far,
        top=draws.integer(0, SIDE - shape.shape[0]),
        left=draws.integer(0, SIDE - shape.shape[1]),
        shape=shape,
        tint=(draws.integer(-10, 10), draws.integer(-10, 10), draws.integer(-10, 10)),
        phase=draws.integer(0, 7),
    )


def _weighted(draws: Draws, weights: Sequence[int]) -> int:
    drawn = draws.integer(0, sum(weights) - 1)
    return int(np.searchsorted(np.cumsum(weights), drawn, side="right"))


def _draw_shape(draws: Draws, bucket: int) -> Bools:
    match BUCKETS[bucket]:
        case "disc":
            side = draws.integer(20, 34)
            # Twice the distance from the centre, so that everything stays an integer.
            offset = 2 * np.arange(side) + 1 - side
            disc: Bools = offset[:, None] ** 2 + offset**2 <= side**2
            return disc
        case "square":
            side = draws.integer(18, 30)
            return np.ones((side, side), bool)
        case _:
            length, width = draws.integer(36, 48), draws.integer(12, 15)
            return np.ones((length, width) if draws.chance(50) else (width, length), bool)


def seams(ids_HW: NDArray[np.uint8]) -> Bools:
    """bool [H, W]: pixels around which, in the square of nine, there is more than one id."""
    around = np.lib.stride_tricks.sliding_window_view(np.pad(ids_HW, 1, mode="edge"), (3, 3))
    at_seam: Bools = (around != ids_HW[..., None, None]).any(axis=(2, 3))
    return at_seam


def stripes(texture: Texture, size_hw: tuple[int, ...], phase: int) -> Ints:
    """[H, W]: plus and minus `STRIPES`, each for half a period."""
    period, direction = texture
    position = np.arange(size_hw[0])[:, None] if direction == "rows" else np.arange(size_hw[1])[None]
    is_up = (position + phase) % period < period // 2
    return np.broadcast_to(np.where(is_up, STRIPES, -STRIPES), size_hw).astype(np.int32)


def best_accuracy(
    modalities: Collection[str],
    *,
    has_thermal: bool,
    is_far: bool | None = None,
    is_night: bool | None = None,
    level: int = 0,
) -> float:
    """The accuracy that no model exceeds on objects, in the mean, given what the modalities show.

    Args:
        modalities: what the model reads.
        has_thermal: which of the two sets it is.
        is_far, is_night: only such objects; None: as drawn.
        level: 0 leaves, 1 buckets, 2 roots.

    >>> round(best_accuracy(["rgb"], has_thermal=False, is_far=True), 3)  # 1/4 of the discs, 1/2 of the others
    0.312
    """
    nights = {True: 1 / NIGHT_EVERY, False: 1 - 1 / NIGHT_EVERY} if has_thermal else {False: 1.0}
    chances: dict[object, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    total = 0.0
    for leaf, weight in enumerate(NEAR_WEIGHTS):
        bucket = BUCKET_OF[leaf]
        bucket_weight = sum(w for other, w in enumerate(NEAR_WEIGHTS) if BUCKET_OF[other] == bucket)
        shares = {
            False: weight * (100 - FAR_PERCENT) / 100,
            True: bucket_weight / BUCKET_OF.count(bucket) * FAR_PERCENT / 100,
        }
        for far, share in shares.items():
            for night, part in nights.items():
                if is_far in (None, far) and is_night in (None, night):
                    shown = _shown(leaf, far, night, modalities, has_thermal)
                    chances[shown][_at_level(leaf, level)] += share * part
                    total += share * part
    nothing = frozenset[object]()
    return sum(max(by_class.values()) for shown, by_class in chances.items() if shown != nothing) / total


def _shown(
    leaf: int, is_far: bool, is_night: bool, modalities: Collection[str], has_thermal: bool
) -> frozenset[object]:
    """What an object shows."""
    shown: set[object] = set()
    if "rgb" in modalities and not is_night:
        textures = THERMAL_TEXTURES if has_thermal else TEXTURES
        shown |= {BUCKETS[BUCKET_OF[leaf]], "far" if is_far else textures[leaf]}
    if "thermal" in modalities and has_thermal:
        shown |= {BUCKETS[BUCKET_OF[leaf]], IS_WARM[leaf]}
    return frozenset(shown)


def _at_level(leaf: int, level: int) -> int:
    for each in TREE_LEVELS[:level]:
        leaf = each.parents[leaf]
    return leaf

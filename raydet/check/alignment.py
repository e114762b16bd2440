"""Estimate whether two modalities of an image are aligned, misaligned, or cannot be compared.

A person is brighter than the road in thermal and darker in RGB, but the outline has the same orientation. So images are
compared by their gradients with doubled angle, which removes the sign: z = g² / |g| for the gradient g as a complex
number, normalised by the local gradient magnitude, so that a lamp counts no more than a kerb. The real part of the
correlation of two such fields measures how well outlines agree.

The field is divided into blocks, and each is correlated with its surroundings in the other image. The blocks'
correlation surfaces are summed along a *pose*: a shift, a rotation and a change of scale, as caused by a badly
calibrated rig and most faulty exports; distortions are found as far as a pose approximates them. The maximum of the sum
over the noise of the surface (its median absolute deviation, scaled to a standard deviation) is the *strength* of the
pose; it needs no unit and no knowledge of the sensors. There are three verdicts:

- `misaligned`: the strongest pose reaches `STRONG`, is supported by several blocks, moves the image by more than the
  tolerance, and there is no separate agreement in place.
- `aligned`: a shift within the tolerance, without rotation and scale, reaches `PRESENT`.
- `cannot_tell`: neither; for example one sensor sees nothing at night, or the images show different scenes.

`PRESENT` and `STRONG` come from measurements on MSRS, RoadScene and LLVIP, 256 true pairs and 424 pairs of different
images, tolerance 0.0125. Different images reached by chance 6.8 anywhere, and 4.1 in place (once 5.0, which was
called aligned). True pairs reached at least 4.4 in place, all but one of them 4.5; three strongly warped ones 9.1
to 13. `tests/integration/test_data_check.py` checks the verdicts.

True pairs that were shifted as a whole (38 of MSRS, 26 of RoadScene, 8 of LLVIP): at 1.5 % of the longer side 54 of 72
were flagged and 17 still called aligned; at 2.5 % 61 were flagged, at 6 % 58, and none was called aligned: the rest
were `cannot_tell`. So a misaligned pair with little in common ends as `cannot_tell`. The median error of the estimated
shift was 0.01 to 0.04 %, the largest from 2.5 % on was 0.2 %. Thresholds and figures come from the same images.

Not detected: a misalignment below the tolerance, a single displaced object (parallax), and any misalignment if both
images contain the same overlay, such as a black border or a printed clock: it agrees in place, whatever the rest does.

Legend: H W working image, B blocks, D D shifts within the search range.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import fft, ndimage
from torch import Tensor

from raydet.check.grey import grey_levels

Verdict = Literal["aligned", "misaligned", "cannot_tell"]
Field = NDArray[np.complex64]
Floats = NDArray[np.float32]

PRESENT = 4.5
"""Minimum strength of an agreement in place: chance has reached 4.1 there, once 5.0."""
STRONG = 7.5
"""Minimum strength of an agreement elsewhere: more shifts and poses are tried, so chance reaches more."""
MIN_AGREEING = 3.0
"""Minimum number of blocks that support a displacement: the outlines of two objects may match by chance. Three warped
pairs have 18 to 23, chance among the few objects of the synthetic set 1 to 1.5."""
MIN_TOLERANCE_PX = 4.0
"""Tolerance of small images, in working pixels."""
IN_PLACE_RATIO = 0.75
"""Relative strength from which an agreement in place wins over the strongest pose: repetitive structures such as fences
also agree with a shifted copy of themselves."""
POSE_GAIN = 1.15
"""Minimum gain in strength over the best pure shift for a rotation or change of scale to be accepted."""
WORKING_PX = 400
"""The longer side at which images are compared; larger ones are downscaled to it."""
SEARCH = 0.1
"""Range of shifts in each direction, as a fraction of the longer side."""
MIN_SEARCH_PX = 8
BLOCK_PX = 50
POSE_STEP, POSE_STEPS = 0.03, 4
"""Step and number of steps to either side for rotations (radians) and changes of scale: up to 0.12 or 7 degrees."""
STRIDE = 2
"""Working pixels between the shifts that are tried for a pose."""
GRADIENT_SIGMA, NEIGHBOURHOOD_SIGMA, SURFACE_SIGMA = 1.0, 20.0, 1.0
NOISE_FLOOR = 0.45
"""Gradients below are taken for sensor or quantisation noise, in grey levels per pixel."""
MAD_TO_SIGMA = 1.4826


@dataclass(frozen=True, slots=True)
class Alignment:
    """The estimated displacement of the second modality relative to the first. Lengths are source pixels."""

    first: str
    second: str
    verdict: Verdict
    shift_xy: tuple[float, float]
    """Shift of the image centre, to the right and down."""
    rotation_deg: float
    """Clockwise."""
    scale: float
    """Above 1, objects are larger in the second image."""
    displacement_px: float
    """Median length of the displacement over the image."""
    strength: float
    """Strength of the strongest pose, which the fields above describe."""
    strength_in_place: float
    """Strength of the best shift within the tolerance."""


@dataclass(frozen=True, slots=True)
class _Surfaces:
    """Correlation of every block with its surroundings in the other image."""

    values_BDD: Floats
    """Sampled every `STRIDE` pixels, median removed, smoothed."""
    centres_B2: Floats
    """y, x relative to the image centre, working pixels."""


@dataclass(frozen=True, slots=True)
class _Pose:
    strength: float
    shift_yx: tuple[float, float]
    rotation: float
    stretch: float

    def displacements(self, centres_B2: Floats) -> Floats:
        """Displacement y, x of each block, [B, 2], to first order in rotation and stretch."""
        y_B, x_B = centres_B2.T
        dy = self.shift_yx[0] + self.stretch * y_B + self.rotation * x_B
        dx = self.shift_yx[1] + self.stretch * x_B - self.rotation * y_B
        return np.stack([dy, dx], axis=1)


def outline_field(x_CHW: Tensor) -> tuple[Field, float]:
    """The doubled-angle gradient field of a modality, and working pixels per source pixel.

    Args:
        x_CHW: see `grey_levels`.
    """
    grey_HW = grey_levels(x_CHW)
    height, width = grey_HW.shape
    factor = min(1.0, WORKING_PX / max(height, width))
    if factor < 1:
        size = max(1, round(width * factor)), max(1, round(height * factor))
        grey_HW = np.asarray(Image.fromarray(grey_HW).resize(size, Image.Resampling.BOX))
    slope_HW = ndimage.gaussian_filter(grey_HW, GRADIENT_SIGMA, order=(0, 1)) + 1j * ndimage.gaussian_filter(
        grey_HW, GRADIENT_SIGMA, order=(1, 0)
    )
    steepness_HW = np.abs(slope_HW)
    around_HW = np.sqrt(ndimage.gaussian_filter(steepness_HW**2, NEIGHBOURHOOD_SIGMA))
    doubled_HW = slope_HW**2 / np.maximum(steepness_HW, 1e-6)
    return (doubled_HW / (around_HW + NOISE_FLOOR)).astype(np.complex64), factor


def compared(
    first: str, second: str, fields: tuple[Field, Field], factor: float, *, tolerance: float
) -> Alignment:
    """The alignment of two fields of the same shape.

    Args:
        factor: working pixels per source pixel.
        tolerance: largest displacement of an aligned pair, as a fraction of the longer side; at least
            `MIN_TOLERANCE_PX`.
    """
    surfaces = _correlated(*fields)
    totals, noise = _along_poses(surfaces)
    tolerance_px = max(MIN_TOLERANCE_PX, tolerance * max(fields[0].shape))
    if not noise > 0:  # one of the images is flat
        return Alignment(first, second, "cannot_tell", (0.0, 0.0), 0.0, 1.0, 0.0, 0.0, 0.0)
    best, shift_only = _strongest(totals, noise)
    in_place, in_place_yx = _in_place(totals[0.0, 0.0], noise, tolerance_px)
    moved_px = float(np.median(np.hypot(*best.displacements(surfaces.centres_B2).T)))
    distance_px = float(np.hypot(*np.subtract(in_place_yx, shift_only.shift_yx)))
    is_flank = best is shift_only and distance_px <= 2 * STRIDE
    agrees_in_place = in_place >= PRESENT and in_place >= IN_PLACE_RATIO * best.strength and not is_flank
    verdict: Verdict = "cannot_tell"
    is_supported = _num_agreeing(surfaces, best) >= MIN_AGREEING
    if best.strength >= STRONG and is_supported and moved_px > tolerance_px and not agrees_in_place:
        verdict = "misaligned"
    elif in_place >= PRESENT:
        verdict = "aligned"
    return Alignment(
        first=first,
        second=second,
        verdict=verdict,
        shift_xy=(round(best.shift_yx[1] / factor, 2), round(best.shift_yx[0] / factor, 2)),
        rotation_deg=round(float(np.degrees(best.rotation)), 2),
        scale=round(1 + best.stretch, 3),
        displacement_px=round(moved_px / factor, 2),
        strength=round(best.strength, 2),
        strength_in_place=round(in_place, 2),
    )


def _correlated(first_HW: Field, second_HW: Field) -> _Surfaces:
    """Correlate each block of the first field with its surroundings in the second."""
    height, width = first_HW.shape
    reach = max(MIN_SEARCH_PX, STRIDE * round(SEARCH * max(height, width) / STRIDE))
    rows, columns = max(1, round(height / BLOCK_PX)), max(1, round(width / BLOCK_PX))
    block_h, block_w = -(-height // rows), -(-width // columns)
    padded = np.zeros((rows * block_h, columns * block_w), np.complex64)
    padded[:height, :width] = first_HW
    around = np.zeros((rows * block_h + 2 * reach, columns * block_w + 2 * reach), np.complex64)
    around[reach : reach + height, reach : reach + width] = second_HW
    blocks = padded.reshape(rows, block_h, columns, block_w).swapaxes(1, 2).reshape(-1, block_h, block_w)
    window = block_h + 2 * reach, block_w + 2 * reach
    views = np.lib.stride_tricks.sliding_window_view(around, window)[::block_h, ::block_w]
    shape = tuple(fft.next_fast_len(length) for length in window)
    spectrum = np.conj(fft.fft2(blocks, shape)) * fft.fft2(views.reshape(-1, *window), shape)
    values_BDD = fft.ifft2(spectrum).real[:, : 2 * reach + 1, : 2 * reach + 1]
    y_B = (np.repeat(np.arange(rows), columns) + 0.5) * block_h - height / 2
    x_B = (np.tile(np.arange(columns), rows) + 0.5) * block_w - width / 2
    values_BDD -= np.median(values_BDD, axis=(1, 2), keepdims=True)
    smooth_BDD = ndimage.gaussian_filter(values_BDD, (0, SURFACE_SIGMA, SURFACE_SIGMA))
    first = reach % STRIDE  # so that a shift of 0 is on the grid
    return _Surfaces(
        np.ascontiguousarray(smooth_BDD[:, first::STRIDE, first::STRIDE], np.float32),
        np.stack([y_B, x_B], axis=1).astype(np.float32),
    )


def _along_poses(surfaces: _Surfaces) -> tuple[dict[tuple[float, float], Floats], float]:
    """Sums over the blocks for each (rotation, stretch), every `STRIDE` pixels, and the noise of the plain sum."""
    length = surfaces.values_BDD.shape[1]
    largest = POSE_STEP * POSE_STEPS
    margin = int(2 * largest * float(np.abs(surfaces.centres_B2).max()) / STRIDE) + 2
    padded_BDD = np.pad(surfaces.values_BDD, ((0, 0), (margin, margin), (margin, margin)))
    totals = {}
    steps = [round(step * POSE_STEP, 6) for step in range(-POSE_STEPS, POSE_STEPS + 1)]
    for rotation, stretch in product(steps, steps):
        offsets_B2 = _Pose(0.0, (0.0, 0.0), rotation, stretch).displacements(surfaces.centres_B2) / STRIDE
        total = np.zeros((length, length), np.float32)
        for block, (top, left) in enumerate((np.rint(offsets_B2).astype(int) + margin).tolist()):
            total += padded_BDD[block, top : top + length, left : left + length]
        totals[rotation, stretch] = total
    plain = totals[0.0, 0.0]
    return totals, MAD_TO_SIGMA * float(np.median(np.abs(plain - np.median(plain))))


def _num_agreeing(surfaces: _Surfaces, pose: _Pose) -> float:
    """Effective number of blocks that support a pose: (sum v)² / sum v² over their contributions v."""
    length = surfaces.values_BDD.shape[1]
    steps_B2 = np.rint(pose.displacements(surfaces.centres_B2) / STRIDE).astype(int) + length // 2
    rows, columns = np.clip(steps_B2, 0, length - 1).T
    values_B = surfaces.values_BDD[np.arange(len(rows)), rows, columns].clip(min=0).astype(float)
    return float(values_B.sum() ** 2 / max(float((values_B**2).sum()), 1e-12))


def _strongest(totals: dict[tuple[float, float], Floats], noise: float) -> tuple[_Pose, _Pose]:
    """The strongest pose and the strongest pure shift; the same object if rotation and scale gain little."""
    peaks = {pose: float(total.max()) for pose, total in totals.items()}
    shift_only = _peak(totals[0.0, 0.0], (0.0, 0.0), noise)
    pose = max(peaks, key=lambda key: peaks[key])
    if pose == (0.0, 0.0) or peaks[pose] / noise < POSE_GAIN * shift_only.strength:
        return shift_only, shift_only
    return _peak(totals[pose], pose, noise), shift_only


def _peak(total_DD: Floats, pose: tuple[float, float], noise: float) -> _Pose:
    """The maximum, with subpixel position from a parabola through its neighbours."""
    length = len(total_DD)
    row, column = divmod(int(total_DD.argmax()), length)
    y = row + _vertex(total_DD[:, column], row)
    x = column + _vertex(total_DD[row], column)
    middle = length // 2
    shift_yx = (y - middle) * STRIDE, (x - middle) * STRIDE
    return _Pose(float(total_DD[row, column]) / noise, shift_yx, *pose)


def _vertex(values: Floats, at: int) -> float:
    """Offset in -0.5..0.5 of the vertex of the parabola through the values around a maximum."""
    if not 0 < at < len(values) - 1:
        return 0.0
    before, peak, after = values[at - 1 : at + 2].astype(float)
    curvature = before - 2 * peak + after
    return float(np.clip(0.5 * (before - after) / curvature, -0.5, 0.5)) if curvature < 0 else 0.0


def _in_place(total_DD: Floats, noise: float, tolerance_px: float) -> tuple[float, tuple[float, float]]:
    """Strength and position (y, x) of the best shift within the tolerance in each direction."""
    middle = len(total_DD) // 2
    reach = min(middle, int(tolerance_px / STRIDE))
    zone = total_DD[middle - reach : middle + reach + 1, middle - reach : middle + reach + 1]
    row, column = divmod(int(zone.argmax()), len(zone))
    return float(zone[row, column]) / noise, (float(row - reach) * STRIDE, float(column - reach) * STRIDE)

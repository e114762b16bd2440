"""Differences of neighbouring pixels, which compress better than pixels: lossless, modulo 256.

Red and blue are stored relative to green, and a row relative to the one above. Rows form bands whose first row is
stored as is: all bands are restored together, in `BAND_ROWS` steps instead of one per row.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BAND_ROWS = 16


def residuals(pixels_CHW: Tensor) -> Tensor:
    """Differences for uint8 pixels; other types unchanged."""
    if pixels_CHW.dtype != torch.uint8:
        return pixels_CHW
    values_CHW = pixels_CHW.numpy().copy()
    if len(values_CHW) == 3:
        values_CHW[[0, 2]] -= values_CHW[1]
    for row in range(BAND_ROWS - 1, 0, -1):
        rows, above = _rows_and_above(values_CHW, row)
        rows -= above
    return torch.from_numpy(values_CHW)


def restore(residuals_CHW: Tensor) -> None:
    """Undo `residuals`, in place."""
    if residuals_CHW.dtype != torch.uint8:
        return
    values_CHW = residuals_CHW.numpy()
    for row in range(1, BAND_ROWS):
        rows, above = _rows_and_above(values_CHW, row)
        rows += above
    if len(values_CHW) == 3:
        values_CHW[0] += values_CHW[1]
        values_CHW[2] += values_CHW[1]


def _rows_and_above(pixels_CHW: NDArray[np.uint8], row: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One row of every band, and the row above each."""
    rows = pixels_CHW[:, row::BAND_ROWS]
    return rows, pixels_CHW[:, row - 1 :: BAND_ROWS][:, : rows.shape[1]]

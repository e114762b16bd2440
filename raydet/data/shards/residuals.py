"""Differences of neighbours, which pack better than pixels: lossless, modulo 256.

Red and blue resemble green, and a row resembles the one above. Rows are taken in bands, the first row of a band as it
is: all bands are restored at once, in `BAND_ROWS` steps instead of one per row.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BAND_ROWS = 16


def residuals(pixels_CHW: Tensor) -> Tensor:
    """uint8 pixels as differences; others as they are."""
    if pixels_CHW.dtype != torch.uint8:
        return pixels_CHW
    less_CHW = pixels_CHW.numpy().copy()
    if len(less_CHW) == 3:
        less_CHW[[0, 2]] -= less_CHW[1]
    for row in range(BAND_ROWS - 1, 0, -1):
        rows, above = _rows_and_above(less_CHW, row)
        rows -= above
    return torch.from_numpy(less_CHW)


def restore(residuals_CHW: Tensor) -> None:
    """Undo `residuals`, in place."""
    if residuals_CHW.dtype != torch.uint8:
        return
    less_CHW = residuals_CHW.numpy()
    for row in range(1, BAND_ROWS):
        rows, above = _rows_and_above(less_CHW, row)
        rows += above
    if len(less_CHW) == 3:
        less_CHW[0] += less_CHW[1]
        less_CHW[2] += less_CHW[1]


def _rows_and_above(pixels_CHW: NDArray[np.uint8], row: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """One row of every band, and the rows above those."""
    rows = pixels_CHW[:, row::BAND_ROWS]
    return rows, pixels_CHW[:, row - 1 :: BAND_ROWS][:, : rows.shape[1]]

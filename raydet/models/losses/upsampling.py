"""Bilinear upsampling of some rows at a time, and its adjoint.

Both are products with a matrix per axis. The adjoint thus has a fixed order of summation on every device (the kernel
of `F.interpolate` for GPUs adds with atomics) and is faster on CPUs than the kernel there.

Legend: N images, K channels, h w map, H W canvas, R rows of the canvas.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


class Upsampling:
    """From maps [h, w] to a canvas [H, W], as `F.interpolate(..., mode="bilinear", align_corners=False)`.

    >>> x = torch.randn(2, 3, 4, 5)
    >>> up = Upsampling((4, 5), (11, 9), device=x.device, dtype=x.dtype)
    >>> whole = torch.nn.functional.interpolate(x, size=(11, 9), mode="bilinear")
    >>> torch.testing.assert_close(up.rows(x, slice(3, 8)), whole[:, :, 3:8])
    """

    def __init__(
        self, map_hw: tuple[int, int], canvas_hw: tuple[int, int], *, device: torch.device, dtype: torch.dtype
    ) -> None:
        self.map_hw = map_hw
        self.canvas_hw = canvas_hw
        if map_hw != canvas_hw:
            self.rows_Hh, self.columns_Ww = (
                _bilinear_matrix(*sizes, device=device).to(dtype)
                for sizes in zip(canvas_hw, map_hw, strict=True)
            )

    def rows(self, x_NKhw: Tensor, rows: slice) -> Tensor:
        """[N, K, R, W]: some rows of the canvas."""
        if self.map_hw == self.canvas_hw:
            return x_NKhw[:, :, rows]
        seen = self._map_rows(rows)
        return (self.rows_Hh[rows, seen] @ x_NKhw[:, :, seen]) @ self.columns_Ww.mT

    def add_adjoint(self, gradient_NKRW: Tensor, rows: slice, *, to_NKhw: Tensor) -> None:
        """Add the gradient with respect to the map to `to_NKhw`, given the one with respect to rows of the canvas."""
        if self.map_hw == self.canvas_hw:
            to_NKhw[:, :, rows] += gradient_NKRW
            return
        seen = self._map_rows(rows)
        to_NKhw[:, :, seen] += self.rows_Hh[rows, seen].mT @ (gradient_NKRW @ self.columns_Ww)

    def _map_rows(self, rows: slice) -> slice:
        """The rows of the map that rows of the canvas are made of."""
        (h, _), (height, _) = self.map_hw, self.canvas_hw
        first, last = (math.floor((row + 0.5) * h / height - 0.5) for row in (rows.start, rows.stop - 1))
        return slice(max(0, first), min(h, last + 2))


def _bilinear_matrix(size: int, map_size: int, *, device: torch.device) -> Tensor:
    """float64 [size, map_size]: the weight of every position of the map at every position of the canvas."""
    centers = (torch.arange(size, device=device, dtype=torch.float64) + 0.5) * (map_size / size) - 0.5
    positions = torch.arange(map_size, device=device, dtype=torch.float64)
    return (1 - (centers.clamp(0, map_size - 1)[:, None] - positions).abs()).clamp(min=0)

"""The maps of a pyramid as one table with one row per level, image and cell, so that pooling is a gather of rows.

Legend: B batch, C channels, H W map, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowTable:
    """Row `starts[level] + (image * H + y) * W + x` is the cell (y, x), with (H, W) = `sizes_hw[level]`."""

    rows_RC: Tensor
    sizes_hw: tuple[tuple[int, int], ...]
    starts: tuple[int, ...]

    @property
    def zero_row(self) -> int:
        """Index of the last row, which is zero and stands for cells outside the map."""
        return len(self.rows_RC) - 1

    def per_level(self, values: Sequence[float], level_K: Tensor, dtype: torch.dtype) -> Tensor:
        """`values[level]` of every item."""
        return torch.tensor(values, dtype=dtype).to(level_K.device, non_blocking=True)[level_K]


def row_table(maps_BCHW: Sequence[Tensor], *, dtype: torch.dtype) -> RowTable:
    """Copy the maps of one batch into a table; channels_last maps are read in memory order.

    >>> table = row_table([torch.ones(2, 3, 4, 5), torch.zeros(2, 3, 2, 3)], dtype=torch.float32)
    >>> table.rows_RC.shape, table.starts, table.zero_row
    (torch.Size([53, 3]), (0, 40), 52)
    """
    rows = [x_BCHW.to(dtype).permute(0, 2, 3, 1).flatten(0, 2) for x_BCHW in maps_BCHW]
    starts = tuple(accumulate(map(len, rows[:-1]), initial=0))
    zero_1C = rows[0].new_zeros(1, rows[0].shape[1])
    sizes_hw = tuple((x_BCHW.shape[2], x_BCHW.shape[3]) for x_BCHW in maps_BCHW)
    return RowTable(torch.cat([*rows, zero_1C]), sizes_hw, starts)

"""The maps of a pyramid as one table of rows: one row per image and cell, level after level.

Pooling and sampling then are gathers of rows, whatever level and image a row comes from.

Legend: B batch, C channels, H W map, R rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class RowTable:
    """Row `starts[level] + (image * H + y) * W + x` is the cell (y, x) of an image's map; the last row is zero."""

    rows_RC: Tensor
    sizes_hw: tuple[tuple[int, int], ...]
    """Of each level's map."""
    starts: tuple[int, ...]
    """First row of each level."""

    @property
    def zero_row(self) -> int:
        """Index of the row of zeros: what lies beyond the border."""
        return len(self.rows_RC) - 1

    def per_level(self, values: Sequence[float], level_K: Tensor, dtype: torch.dtype) -> Tensor:
        """`values[level]` of every item."""
        return torch.tensor(values, dtype=dtype).to(level_K.device, non_blocking=True)[level_K]


def row_table(maps_BCHW: Sequence[Tensor], *, dtype: torch.dtype) -> RowTable:
    """Copy maps of one batch into a table; channels_last maps are read in order.

    >>> table = row_table([torch.ones(2, 3, 4, 5), torch.zeros(2, 3, 2, 3)], dtype=torch.float32)
    >>> table.rows_RC.shape, table.starts, table.zero_row
    (torch.Size([53, 3]), (0, 40), 52)
    """
    rows = [x_BCHW.to(dtype).permute(0, 2, 3, 1).flatten(0, 2) for x_BCHW in maps_BCHW]
    starts = [0]
    for level_rows in rows[:-1]:
        starts.append(starts[-1] + len(level_rows))
    zero_1C = rows[0].new_zeros(1, rows[0].shape[1])
    sizes_hw = tuple((x_BCHW.shape[2], x_BCHW.shape[3]) for x_BCHW in maps_BCHW)
    return RowTable(torch.cat([*rows, zero_1C]), sizes_hw, tuple(starts))

"""Losses that are means over the labelled pixels of the canvas, of logits at a lower resolution.

The plain way upsamples the logits of the whole batch to the canvas in fp32 and keeps them, their softmax and their
gradient there. This one goes through the canvas in chunks: upsample, compute the loss *and its gradient*, bring the
gradient back to the resolution of the logits. Only that is kept for the backward pass, which multiplies it by a number.

The value is the same; the price is that the loss can be differentiated only once, and that its gradient is computed
again where the forward pass is recomputed.

Legend: B batch, N images of a chunk, K channels, h w map of the logits, H W canvas, R rows of a chunk, T terms,
L levels of a class tree (one without a tree), C classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from raydet.models.losses.upsampling import Upsampling
from raydet.structures import IGNORE


class PixelTerm(Protocol):
    """A sum over pixels, and its gradient."""

    @property
    def channels(self) -> slice:
        """Channels of the logits that it looks at."""

    def __call__(
        self, logits_NKRW: Tensor, labels_NLRW: Tensor, is_valid_N1RW: Tensor, /, *, with_gradient: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The sum over the valid pixels, and its gradient [N, K, R, W] with respect to the logits.

        Args:
            logits_NKRW: its channels; they must not be changed.
            labels_NLRW: int64, the channel of the pixel's class, and of the groups it belongs to, counted from the
                first of all channels; those of class 0 where ignored.
            is_valid_N1RW: 1 where there is a label, 0 where it is ignored.
        """


def pixel_means(
    logits_BKhw: Tensor, ids_BHW: Tensor, terms: Sequence[PixelTerm], *, path_LC: Tensor | None = None
) -> Tensor:
    """[T]: the terms' means over the pixels that have a label; 0 if there is none. fp32, or fp64 for fp64 logits.

    Args:
        logits_BKhw: at any resolution.
        ids_BHW: uint8 or int16, 0..C-1 or `IGNORE`.
        path_LC: int64, the channel of every class, and of the groups it belongs to; None: the channels are the classes.
    """
    means_T: Tensor = _PixelMeans.apply(logits_BKhw, ids_BHW, path_LC, tuple(terms))
    return means_T


class _PixelMeans(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits_BKhw: Tensor, ids_BHW: Tensor, path_LC: Tensor | None, terms: tuple[PixelTerm, ...]
    ) -> Tensor:
        wide = wide_dtype(logits_BKhw.dtype)
        with_gradient = ctx.needs_input_grad[0]
        device, (batch, _, h, w), (height, width) = (
            logits_BKhw.device,
            logits_BKhw.shape,
            ids_BHW.shape[1:],
        )
        upsampling = Upsampling((h, w), (height, width), device=device, dtype=wide)
        is_labelled_BHW = ids_BHW != IGNORE
        sums_T = torch.zeros(len(terms), device=device, dtype=wide)
        gradients = [
            torch.zeros(batch, _size(term.channels), h, w, device=device, dtype=wide)
            if with_gradient
            else None
            for term in terms
        ]
        row_size = logits_BKhw.shape[1] * width
        for images, rows in chunks(batch, height, row_size, most=elements_per_chunk(device)):
            logits_NKRW = upsampling.rows(logits_BKhw[images].to(wide), rows)
            is_valid_N1RW = is_labelled_BHW[images, None, rows].to(wide)
            ids_NRW = ids_BHW[images, rows].long().where(is_labelled_BHW[images, rows], 0)
            labels_NLRW = ids_NRW[:, None] if path_LC is None else _looked_up(path_LC, ids_NRW)
            for t, (term, to_BKhw) in enumerate(zip(terms, gradients, strict=True)):
                value, gradient_NKRW = term(
                    logits_NKRW[:, term.channels], labels_NLRW, is_valid_N1RW, with_gradient=with_gradient
                )
                sums_T[t] += value
                if to_BKhw is not None and gradient_NKRW is not None:
                    upsampling.add_adjoint(gradient_NKRW, rows, to_NKhw=to_BKhw[images])
        share = 1 / is_labelled_BHW.sum().clamp(min=1).to(wide)
        ctx.terms = terms
        ctx.shape, ctx.dtype = logits_BKhw.shape, logits_BKhw.dtype
        ctx.save_for_backward(share, *(x for x in gradients if x is not None))
        return sums_T * share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient_T: Tensor) -> tuple[Tensor, None, None, None]:
        share, *gradients = ctx.saved_tensors
        total_BKhw = gradients[0].new_zeros(ctx.shape)
        for term, factor, gradient_BKhw in zip(ctx.terms, gradient_T * share, gradients, strict=True):
            total_BKhw[:, term.channels] += factor * gradient_BKhw
        return total_BKhw.to(ctx.dtype), None, None, None


def _looked_up(path_LC: Tensor, ids_NRW: Tensor) -> Tensor:
    return path_LC.index_select(1, ids_NRW.flatten()).unflatten(1, ids_NRW.shape).movedim(0, 1)


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """What losses are computed in: fp32, or fp64 for fp64 logits."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def elements_per_chunk(device: torch.device) -> int:
    """A chunk has to fit into the cache of a CPU, and to be worth the launch of a kernel on a GPU."""
    return 2**19 if device.type == "cpu" else 2**24


def chunks(batch: int, rows: int, row_size: int, *, most: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of chunks that have at most `most` elements, and one row at least: several whole images, or a
    part of one. Parts have about the same size.

    >>> list(chunks(3, 4, 10, most=80))
    [(slice(0, 2, None), slice(0, 4, None)), (slice(2, 3, None), slice(0, 4, None))]
    >>> list(chunks(1, 4, 10, most=20))
    [(slice(0, 1, None), slice(0, 2, None)), (slice(0, 1, None), slice(2, 4, None))]
    """
    num_parts = math.ceil(rows / max(1, most // row_size))
    num_rows = math.ceil(rows / num_parts)
    num_images = max(1, most // (row_size * rows))
    for image in range(0, batch, num_images):
        for row in range(0, rows, num_rows):
            yield slice(image, min(batch, image + num_images)), slice(row, min(rows, row + num_rows))


def _size(channels: slice) -> int:
    return int(channels.stop - channels.start)

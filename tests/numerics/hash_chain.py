"""A fake recurrent model whose memory of a lane is the sha256 of all windows that it has seen there, in order."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from raydet.structures import Batch, Carry, Output, Want


class HashChain(nn.Module):
    """One weight, so that there is something to train; the memory does not depend on it."""

    loss_names = ("loss",)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, batch: Batch, carry: Carry | None = None, *, want: Want = "losses") -> Output:
        """The memory after the batch; a row of zeros is no memory."""
        num_lanes = batch.size // batch.clip_frames
        before = (carry or {}).get("hash", torch.zeros(num_lanes, 32, dtype=torch.uint8))
        clips = [batch.image_ids[lane::num_lanes] for lane in range(num_lanes)]
        rows = [chained(bytes(row.tolist()), clip) for row, clip in zip(before, clips, strict=True)]
        return Output({"loss": self.weight**2}, None, {"hash": as_tensor(rows)})


def chained(before: bytes, image_ids: Sequence[str]) -> bytes:
    """The memory after one more window."""
    return hashlib.sha256(before + "\n".join(image_ids).encode()).digest()


def as_tensor(rows: Sequence[bytes]) -> Tensor:
    """uint8 [L, 32]."""
    return torch.tensor([list(row) for row in rows], dtype=torch.uint8)

"""The tensors of a checkpoint as files: every rank writes the blocks it holds, any number of ranks reads them back.

A shard is an ordinary safetensors file; where each block begins in its whole tensor stands in the file's metadata, as
`torch.distributed.checkpoint` writes it, which therefore reads our shards as we read its own. We do not write through
it: it copies replicated tensors to the host of every rank, builds the file twice more in memory while holding the
interpreter's lock (training waits for both), and sends pickled plans between the ranks. Here each rank knows its part
without asking, copies nothing else, and the memory it copies to is the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from raydet.errors import CheckpointError
from raydet.parallel.collectives import World

SUFFIX = ".safetensors"
OFFSETS_KEY, OFFSETS_FIELD = "DCP_SHARDING_INFO", "saved_offsets"
"""The names by which torch.distributed.checkpoint stores where a block begins."""
BLOCK_BYTES = 1 << 24
"""Written and hashed at a time; both let other threads run meanwhile."""

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class Block:
    """A box of a tensor that is on this rank."""

    name: str
    values: Tensor
    offsets: tuple[int, ...]
    """Where the box begins in the whole tensor."""


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A box of a tensor that is in a file."""

    path: Path
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor, spread over files."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    blocks: tuple[StoredBlock, ...]

    def __str__(self) -> str:
        return describe(self.shape, self.dtype)


def describe(shape: Iterable[int], dtype: torch.dtype) -> str:
    """Shape and dtype for messages.

    >>> describe((2, 3), torch.float32)
    'float32[2, 3]'
    """
    return f"{str(dtype).removeprefix('torch.')}{list(shape)}"


# --- what a rank writes -----------------------------------------------------------------------------------------------


def blocks_to_write(
    tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor], world: World
) -> list[Block]:
    """What this rank writes, so that all ranks together write everything once.

    Args:
        tensors: the same names on every rank. Pieces (`DTensor`) are written by those who hold them, what all ranks
            hold alike by one of them, chosen so that all write about as much.
        buffers: tensors that may differ between the ranks; rank 0's count, as they do for DistributedDataParallel.
    """
    blocks = [
        Block(name, local_part(tensor), offsets)
        for name, tensor in tensors.items()
        if isinstance(tensor, DTensor) and (offsets := _my_offsets(tensor)) is not None
    ]
    mine = dict(buffers) if world.is_main else {}
    alike = {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, DTensor)}
    written = [0] * world.world_size
    for name in sorted(alike, key=lambda name: (-alike[name].nbytes, name)):
        rank = written.index(min(written))
        written[rank] += alike[name].nbytes
        if rank == world.rank:
            mine[name] = alike[name]
    return [*blocks, *(Block(name, tensor, offsets_of(tensor)) for name, tensor in mine.items())]


def _my_offsets(tensor: DTensor) -> tuple[int, ...] | None:
    """Where this rank's piece begins; None where it is empty or another rank writes it."""
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None or tensor.to_local().numel() == 0:
        return None
    copies = [
        at for at, kind in zip(coordinate, tensor.placements, strict=True) if isinstance(kind, Replicate)
    ]
    return None if any(copies) else offsets_of(tensor)


def offsets_of(tensor: Tensor) -> tuple[int, ...]:
    """Where this rank's part of a tensor begins in the whole."""
    if isinstance(tensor, DTensor):
        return tuple(tensor.__create_chunk_list__()[0].offsets)
    return (0,) * tensor.ndim


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory."""
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


class HostCopy:
    """Host memory with a rank's blocks in the order of their file.

    Kept from one checkpoint to the next: to allocate it anew would take longer than to fill it.
    """

    def __init__(self, *, pinned: bool) -> None:
        self.pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._blocks: list[Block] = []
        self._size = 0

    def take(self, blocks: list[Block]) -> None:
        """Copy the blocks; training may change them afterwards."""
        # The widest first: each one then begins at a multiple of its width.
        blocks = sorted(blocks, key=lambda block: (-block.values.dtype.itemsize, block.name))
        self._size = sum(block.values.nbytes for block in blocks)
        if self._memory.numel() < self._size:
            self._memory = torch.empty(self._size, dtype=torch.uint8, pin_memory=self.pinned)
        self._blocks, end = [], 0
        for block in blocks:
            start, end = end, end + block.values.nbytes
            target = self._memory[start:end].view(block.values.dtype).view(block.values.shape)
            target.copy_(block.values, non_blocking=True)
            self._blocks.append(Block(block.name, target, block.offsets))
        if self.pinned:
            torch.cuda.synchronize()

    def write(self, path: Path) -> dict[str, Any]:
        """Write the shard through to the disk.

        Returns:
            Its sha256 and its size in bytes.
        """
        data = self._memory.numpy().data[: self._size]
        header = _header(self._blocks)
        digest = hashlib.sha256(header)
        with path.open("xb", buffering=0) as file:
            _write_all(file.fileno(), memoryview(header))
            for start in range(0, self._size, BLOCK_BYTES):
                block = data[start : start + BLOCK_BYTES]
                _write_all(file.fileno(), block)
                digest.update(block)
            os.fsync(file.fileno())
        return {"sha256": digest.hexdigest(), "bytes": len(header) + self._size}


def _header(blocks: list[Block]) -> bytes:
    offsets = {block.name: {OFFSETS_FIELD: list(block.offsets)} for block in blocks}
    header: dict[str, Any] = {"__metadata__": {"format": "pt", OFFSETS_KEY: json.dumps(offsets)}}
    end = 0
    for block in blocks:
        start, end = end, end + block.values.nbytes
        header[block.name] = {
            "dtype": DTYPE_NAMES[block.values.dtype],
            "shape": list(block.values.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def _write_all(descriptor: int, data: memoryview) -> None:
    while data.nbytes:
        data = data[os.write(descriptor, data) :]  # near a full disk a part is written first, then it fails


# --- what any rank reads ----------------------------------------------------------------------------------------------


def read_index(paths: Iterable[Path]) -> dict[str, StoredTensor]:
    """The tensors that these shards hold together.

    Raises:
        CheckpointError: a file is no shard, or a tensor is not whole.
    """
    blocks: dict[str, list[StoredBlock]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for path in paths:
        for name, dtype, block in _read_header(path):
            if dtypes.setdefault(name, dtype) != dtype:
                raise CheckpointError(f"{path}: {name} is {dtype} here and {dtypes[name]} in another shard")
            blocks.setdefault(name, []).append(block)
    return {name: _whole(name, dtypes[name], parts) for name, parts in blocks.items()}


def _read_header(path: Path) -> list[tuple[str, torch.dtype, StoredBlock]]:
    found = []
    try:
        with safe_open(path, framework="pt") as file:
            offsets = json.loads((file.metadata() or {}).get(OFFSETS_KEY, "{}"))
            for name in file.keys():  # noqa: SIM118 -- the file is no dict
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                begin = tuple(offsets[name][OFFSETS_FIELD]) if name in offsets else (0,) * len(shape)
                found.append((name, DTYPES[part.get_dtype()], StoredBlock(path, begin, shape)))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path} is no shard of a checkpoint: {error}") from error
    return found


def _whole(name: str, dtype: torch.dtype, blocks: list[StoredBlock]) -> StoredTensor:
    corners = [[at + size for at, size in zip(block.offsets, block.shape, strict=True)] for block in blocks]
    shape = tuple(max(sizes) for sizes in zip(*corners, strict=True))
    if sum(math.prod(block.shape) for block in blocks) != math.prod(shape):
        raise CheckpointError(
            f"{blocks[0].path.parent}: the shards do not hold the whole of {name} {list(shape)}"
        )
    return StoredTensor(dtype, shape, tuple(blocks))


class ShardReader:
    """Fills tensors from shards; keeps the files open meanwhile."""

    def __init__(self) -> None:
        self._files: dict[Path, Any] = {}
        self._opened: list[Any] = []

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._opened:
            file.__exit__(*exception)

    @torch.no_grad()
    def fill(self, name: str, target: Tensor, stored: StoredTensor) -> None:
        """Copy this rank's part of a stored tensor into `target`, however it was cut when it was written.

        Raises:
            CheckpointError: a file cannot be read.
        """
        mine, offsets = local_part(target), offsets_of(target)
        if mine.numel() == 0:
            return
        for block in stored.blocks:
            starts = [max(a, b) for a, b in zip(offsets, block.offsets, strict=True)]
            ends = [
                min(a + n, b + m)
                for a, n, b, m in zip(offsets, mine.shape, block.offsets, block.shape, strict=True)
            ]
            if all(start < end for start, end in zip(starts, ends, strict=True)):
                source = self._read(name, block, _box(starts, ends, block.offsets))
                mine[_box(starts, ends, offsets)].copy_(source)

    def whole(self, name: str, stored: StoredTensor) -> Tensor:
        """The whole tensor, on the host."""
        tensor = torch.empty(stored.shape, dtype=stored.dtype)
        self.fill(name, tensor, stored)
        return tensor

    def _read(self, name: str, block: StoredBlock, box: tuple[slice, ...]) -> Tensor:
        try:
            if block.path not in self._files:
                opened = safe_open(block.path, framework="pt")
                self._files[block.path] = opened.__enter__()
                self._opened.append(opened)
            file = self._files[block.path]
            tensor: Tensor = file.get_slice(name)[box] if box else file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {name} from {block.path}: {error}") from error
        return tensor


def _box(starts: list[int], ends: list[int], origin: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(starts, ends, origin, strict=True))

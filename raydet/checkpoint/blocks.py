"""The tensors of a checkpoint as files: every rank writes the blocks it holds, any number of ranks reads them back.

A shard is an ordinary safetensors file; its metadata hold the offsets of each block in the whole tensor, in the format
of `torch.distributed.checkpoint`, so either reads the shards of the other. We do not write through it: it copies
replicated tensors to the host of every rank, builds the file twice more in memory while holding the GIL (training
waits for both), and sends pickled plans between the ranks. Here each rank knows its part without communication, copies
nothing else, and the memory that it copies to is the file.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import struct
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor, Replicate

from raydet.checkpoint.manifest import FileInfo
from raydet.errors import CheckpointError
from raydet.parallel.collectives import World

SUFFIX = ".safetensors"
OFFSETS_KEY, OFFSETS_FIELD = "DCP_SHARDING_INFO", "saved_offsets"
"""Names under which torch.distributed.checkpoint stores the offsets of a block."""
CHUNK_BYTES = 1 << 24
"""Bytes written and hashed at a time; both release the GIL."""

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
    """A box of a tensor, held by this rank."""

    name: str
    values: Tensor
    offsets: tuple[int, ...]
    """First index of the box in the whole tensor."""


@dataclass(frozen=True, slots=True)
class StoredBlock:
    """A box of a tensor, stored in a file."""

    path: Path
    offsets: tuple[int, ...]
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor whose blocks are stored in one or more files."""

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


# --- writing ----------------------------------------------------------------------------------------------------------


def blocks_to_write(
    tensors: Mapping[str, Tensor], buffers: Mapping[str, Tensor], world: World
) -> list[Block]:
    """The blocks that this rank writes; all ranks together write everything once.

    Args:
        tensors: the same names on every rank. Shards (`DTensor`) are written by the ranks that hold them, replicated
            tensors by one rank, chosen so that all write about equally much.
        buffers: tensors that may differ between the ranks; rank 0's are written, as in DistributedDataParallel.
    """
    blocks = [
        Block(name, local_part(tensor), offsets)
        for name, tensor in tensors.items()
        if isinstance(tensor, DTensor) and (offsets := _my_offsets(tensor)) is not None
    ]
    mine = dict(buffers) if world.is_main else {}
    replicated = {name: tensor for name, tensor in tensors.items() if not isinstance(tensor, DTensor)}
    written = [0] * world.world_size
    for name in sorted(replicated, key=lambda name: (-replicated[name].nbytes, name)):
        rank = written.index(min(written))
        written[rank] += replicated[name].nbytes
        if rank == world.rank:
            mine[name] = replicated[name]
    return [*blocks, *(Block(name, tensor, offsets_of(tensor)) for name, tensor in mine.items())]


def lane_blocks(carry: Mapping[str, Tensor], world: World) -> list[Block]:
    """The blocks of a model's memory, of which every rank holds as many lanes, rank 0 the first ones."""
    return [
        Block(name, rows.detach(), (world.rank * len(rows), *[0] * (rows.ndim - 1)))
        for name, rows in carry.items()
    ]


def _my_offsets(tensor: DTensor) -> tuple[int, ...] | None:
    """Offsets of this rank's shard; None: it is empty, or another rank writes it."""
    coordinate = tensor.device_mesh.get_coordinate()
    if coordinate is None or tensor.to_local().numel() == 0:
        return None
    placements = zip(coordinate, tensor.placements, strict=True)
    is_copy = any(at for at, kind in placements if isinstance(kind, Replicate))
    return None if is_copy else offsets_of(tensor)


def offsets_of(tensor: Tensor) -> tuple[int, ...]:
    """Offsets of this rank's part in the whole tensor."""
    if isinstance(tensor, DTensor):
        return tuple(tensor.__create_chunk_list__()[0].offsets)
    return (0,) * tensor.ndim


def local_part(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, sharing its memory."""
    detached = tensor.detach()
    return detached.to_local() if isinstance(detached, DTensor) else detached


class HostCopy:
    """Host memory with a rank's blocks in the order of their file.

    Kept from one checkpoint to the next: allocating it again would take longer than filling it.
    """

    def __init__(self, *, pinned: bool) -> None:
        self.pinned = pinned
        self._memory = torch.empty(0, dtype=torch.uint8)
        self._blocks: list[Block] = []
        self._size = 0

    def take(self, blocks: list[Block]) -> None:
        """Copy the blocks; training may change them afterwards."""
        # The widest dtype first, so that each block is aligned to its item size.
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

    def write(self, path: Path) -> FileInfo:
        """Write the shard and flush it to the disk."""
        data = self._memory.numpy().data[: self._size]
        header = _header(self._blocks)
        digest = hashlib.sha256(header)
        with path.open("xb", buffering=0) as file:
            _write_all(file.fileno(), memoryview(header))
            for start in range(0, self._size, CHUNK_BYTES):
                chunk = data[start : start + CHUNK_BYTES]
                _write_all(file.fileno(), chunk)
                digest.update(chunk)
            os.fsync(file.fileno())
        return {"sha256": digest.hexdigest(), "bytes": len(header) + self._size}


def _header(blocks: list[Block]) -> bytes:
    offsets = {block.name: {OFFSETS_FIELD: list(block.offsets)} for block in blocks}
    header: dict[str, object] = {"__metadata__": {"format": "pt", OFFSETS_KEY: json.dumps(offsets)}}
    end = 0
    for block in blocks:
        start, end = end, end + block.values.nbytes
        header[block.name] = {
            "dtype": DTYPE_NAMES[block.values.dtype],
            "shape": list(block.values.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data start at a multiple of 8
    return struct.pack("<Q", len(text)) + text


def _write_all(descriptor: int, data: memoryview) -> None:
    while data.nbytes:
        data = data[os.write(descriptor, data) :]  # a nearly full disk writes a part first, then fails


# --- reading ----------------------------------------------------------------------------------------------------------


def read_index(paths: Iterable[Path]) -> dict[str, StoredTensor]:
    """The tensors that these shards hold together.

    Raises:
        CheckpointError: a file is not a shard, or a tensor is incomplete.
    """
    blocks: dict[str, list[StoredBlock]] = {}
    dtypes: dict[str, torch.dtype] = {}
    for path in paths:
        for name, dtype, block in _read_header(path):
            if dtypes.setdefault(name, dtype) != dtype:
                raise CheckpointError(f"{path}: {name} is {dtype} here and {dtypes[name]} in another shard")
            blocks.setdefault(name, []).append(block)
    return {name: _merged(name, dtypes[name], parts) for name, parts in blocks.items()}


def _read_header(path: Path) -> list[tuple[str, torch.dtype, StoredBlock]]:
    found = []
    try:
        with safe_open(path, framework="pt") as file:
            offsets = json.loads((file.metadata() or {}).get(OFFSETS_KEY, "{}"))
            for name in file.keys():  # noqa: SIM118 -- the file is not a dict
                part = file.get_slice(name)
                shape = tuple(part.get_shape())
                start = tuple(offsets[name][OFFSETS_FIELD]) if name in offsets else (0,) * len(shape)
                found.append((name, DTYPES[part.get_dtype()], StoredBlock(path, start, shape)))
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path} is not a shard of a checkpoint: {error}") from error
    return found


def _merged(name: str, dtype: torch.dtype, blocks: list[StoredBlock]) -> StoredTensor:
    corners = [[at + size for at, size in zip(block.offsets, block.shape, strict=True)] for block in blocks]
    shape = tuple(max(sizes) for sizes in zip(*corners, strict=True))
    if sum(math.prod(block.shape) for block in blocks) != math.prod(shape):
        raise CheckpointError(
            f"{blocks[0].path.parent}: the shards do not contain all of {name} {list(shape)}"
        )
    return StoredTensor(dtype, shape, tuple(blocks))


class ShardReader:
    """Fills tensors from shards, whose files it keeps open."""

    def __init__(self) -> None:
        self._files: dict[Path, Any] = {}
        self._open = ExitStack()

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *exception: object) -> None:
        self._open.close()

    @torch.no_grad()
    def fill(
        self, name: str, target: Tensor, stored: StoredTensor, offsets: tuple[int, ...] | None = None
    ) -> None:
        """Copy this rank's part of a stored tensor into `target`, however it was sharded when it was written.

        Args:
            offsets: where `target` begins in the whole tensor; default: as its sharding says.

        Raises:
            CheckpointError: a file cannot be read.
        """
        mine, offsets = local_part(target), offsets or offsets_of(target)
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
        """The tensor, on the host."""
        tensor = torch.empty(stored.shape, dtype=stored.dtype)
        self.fill(name, tensor, stored)
        return tensor

    def _read(self, name: str, block: StoredBlock, box: tuple[slice, ...]) -> Tensor:
        try:
            if block.path not in self._files:
                self._files[block.path] = self._open.enter_context(safe_open(block.path, framework="pt"))
            file = self._files[block.path]
            tensor: Tensor = file.get_slice(name)[box] if box else file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"cannot read {name} from {block.path}: {error}") from error
        return tensor


def _box(starts: list[int], ends: list[int], origin: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(a - o, b - o) for a, b, o in zip(starts, ends, origin, strict=True))

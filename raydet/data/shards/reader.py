"""A set of shards as a source: random access to images in memory maps, after checks."""

from __future__ import annotations

import mmap
from collections import OrderedDict
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydet.data.cache import ShardCache
from raydet.data.shards.columns import Lists, Names, Texts, mapped_batch, numbers
from raydet.data.shards.layout import (
    INDEX_SCHEMA,
    MASK,
    MASK_TYPES,
    MAX_PIXELS,
    MAX_SIDE_PX,
    MODALITY_TYPES,
    shard_schema,
)
from raydet.data.shards.manifest import MANIFEST, FileEntry, Manifest
from raydet.data.shards.residuals import restore
from raydet.data.shards.target import NOT_LABELLED, are_ids, restored_boxes
from raydet.data.sources.base import Targets
from raydet.data.storage import Store
from raydet.errors import DataError
from raydet.structures import ANOMALY, IGNORE, Boxes, Mask, Sample

MAX_OPEN_SHARDS = 256
"""Limit per process: each is an open file, of which many systems allow 1,024."""


class ShardSet:
    """The images of a directory or URI with a `manifest.json`, in the order of the shards.

    It is pickled as its path and hash; each process opens the files itself, and all processes of a machine share the
    memory of the index. A sample's tensors must not be changed in place: those of raw shards are the file's pages.

    Args:
        path: directory or URI.
        sha256: the hash that the set must have.
        missing: modalities to leave out.

    Raises:
        DataError: the set does not exist, is incomplete, or has another hash.
    """

    def __init__(self, path: str, *, sha256: str | None = None, missing: Collection[str] = ()) -> None:
        self._store, self._missing = Store(path), tuple(missing)
        self.manifest = read_manifest(self._store)
        if sha256 is not None and sha256 != self.manifest.sha256:
            raise DataError(
                f"{path}: expected the set with sha256 {sha256}, found {self.manifest.sha256}; the set was converted "
                "again: restore it, or start a new run with --data"
            )
        self.classes = self.manifest.classes
        self.levels, self.colours = self.manifest.levels, self.manifest.colours
        self.ignored = self.manifest.ignored
        self.modalities = tuple(name for name in self.manifest.modalities if name not in self._missing)
        self._index = _Index(
            *self._mapped(self.manifest.index, INDEX_SCHEMA),
            self._store.shown(self.manifest.index.name),
            self.manifest,
        )
        self._ends = np.cumsum([shard.images for shard in self.manifest.shards])
        self._open: OrderedDict[int, _Shard] = OrderedDict()

    def __reduce__(self) -> tuple[Any, ...]:
        reopen = partial(ShardSet, sha256=self.manifest.sha256, missing=self._missing)
        return reopen, (self._store.uri,)

    @property
    def image_ids(self) -> Sequence[str]:
        return self._index.image_ids

    @property
    def group_ids(self) -> Sequence[str]:
        return self._index.group_ids

    def __len__(self) -> int:
        return self.manifest.images

    def read(self, index: int) -> Sample:
        """One image; pixels have the type that they had in the source."""
        target, size_hw = self.targets(index)
        shard, row = self._located(index)
        return Sample(
            image_id=self.image_ids[index],
            group_id=self.group_ids[index],
            modalities={name: shard.pixels(name, row, size_hw) for name in self.modalities},
            target=target,
            source_hw=size_hw,
            valid_hw=size_hw,
            is_labelled=self._index.is_labelled(index),
        )

    def targets(self, index: int) -> Targets:
        """The target of an image; for boxes, no shard is opened."""
        boxes, size_hw = self._index.targets(index)
        if self.manifest.target == "boxes":
            return boxes, size_hw
        shard, row = self._located(index)
        return shard.mask(row, size_hw), size_hw

    def _located(self, index: int) -> tuple[_Shard, int]:
        """An image's shard, and its row there."""
        number = int(np.searchsorted(self._ends, index, side="right"))
        return self._shard(number), index - int(self._ends[number - 1] if number else 0)

    def _shard(self, number: int) -> _Shard:
        shard = self._open.get(number)
        if shard is None:
            entry = self.manifest.shards[number]
            has_masks = self.manifest.target == "masks"
            schema = shard_schema(tuple(self.manifest.modalities), has_masks=has_masks)
            memory, batch = self._mapped(entry, schema)
            shard = _Shard(memory, batch, self._store.shown(entry.name), self.manifest)
            if shard.rows != entry.images:
                raise DataError(
                    f"{shard.where}: expected {entry.images} rows, got {shard.rows}; convert the set again"
                )
            self._open[number] = shard
            if len(self._open) > MAX_OPEN_SHARDS:
                self._open.popitem(last=False)
        self._open.move_to_end(number)
        return shard

    def _mapped(self, entry: FileEntry, schema: pa.Schema) -> tuple[mmap.mmap, pa.RecordBatch]:
        for _ in range(2):
            path = ShardCache.of_machine().fetched(self._store, entry.name, entry.sha256, entry.size_bytes)
            try:
                return mapped_batch(path, schema)
            except FileNotFoundError:  # another process has just evicted it
                continue
        raise DataError(
            f"{self._store.shown(entry.name)}: evicted from the cache before it could be opened; raise "
            "RAYDET_CACHE_GIB"
        )


def read_manifest(store: Store) -> Manifest:
    """The manifest of a set.

    Raises:
        DataError: there is none, or it is damaged.
    """
    text = store.read(MANIFEST)
    if text is None:
        raise DataError(
            f"{store.uri}: expected a set of shards, {MANIFEST} does not exist; check the path, or finish the "
            "conversion (raydet data convert)"
        )
    return Manifest.parsed(text, where=store.shown(MANIFEST))


class _Index:
    """Everything about the images except their pixels, as views of a memory map."""

    def __init__(self, memory: mmap.mmap, batch: pa.RecordBatch, where: str, manifest: Manifest) -> None:
        self._memory, self._where = memory, where
        self._num_classes = len(manifest.classes)
        if batch.num_rows != manifest.images:
            raise DataError(
                f"{where}: expected {manifest.images} rows, got {batch.num_rows}; convert the set again"
            )
        column = {name: batch.column(name) for name in INDEX_SCHEMA.names}
        self.image_ids = Texts(column["image_id"], where=where)
        self.group_ids = Names(column["group_id"], where=where)
        self._heights_R: NDArray[np.int32] = numbers(column["height"], "<i4", where=where)
        self._widths_R: NDArray[np.int32] = numbers(column["width"], "<i4", where=where)
        self._boxes = Lists.of(column["boxes_xyxy"], "<f4", where=where)
        self._labels = Lists.of(column["labels"], "<i4", where=where)

    def is_labelled(self, row: int) -> bool:
        return NOT_LABELLED not in self._labels[row]

    def targets(self, row: int) -> tuple[Boxes, tuple[int, int]]:
        boxes, labels = self._boxes[row], self._labels[row]
        if labels.tolist() == [NOT_LABELLED]:
            boxes, labels = boxes[4:], labels[1:]
        size_hw = int(self._heights_R[row]), int(self._widths_R[row])
        if (
            len(boxes) != 4 * len(labels)
            or not np.isfinite(boxes).all()
            or (
                len(labels)
                and not (labels.min() >= -1 - self._num_classes and labels.max() < self._num_classes)
            )
        ):
            raise DataError(
                f"{self._where}, row {row}: expected four finite numbers and a label of one of {self._num_classes} "
                "classes per box; convert the set again"
            )
        if not (min(size_hw) >= 1 and max(size_hw) <= MAX_SIDE_PX and size_hw[0] * size_hw[1] <= MAX_PIXELS):
            raise DataError(
                f"{self._where}, row {row}: invalid image size {size_hw[1]} x {size_hw[0]}; convert the set again"
            )
        boxes_xyxy = torch.from_numpy(boxes.copy()).reshape(-1, 4)
        return restored_boxes(boxes_xyxy, torch.from_numpy(labels.astype(np.int64))), size_hw


@dataclass(frozen=True, slots=True)
class _Column:
    """The pixels of one modality in one shard, or its masks."""

    lists: Lists
    offset: int
    """Byte offset of the values in the file."""
    channels_R: NDArray[np.int32]
    value_bytes_R: NDArray[np.int32]


class _Shard:
    """A file of images in a memory map."""

    def __init__(self, memory: mmap.mmap, batch: pa.RecordBatch, where: str, manifest: Manifest) -> None:
        self._memory, self.where = memory, where
        self.rows = batch.num_rows
        self._codec = pa.Codec("zstd") if manifest.encoding == "zstd" else None
        self._num_classes = len(manifest.classes)
        self._channels = {name: entry.channels for name, entry in manifest.modalities.items()}
        if manifest.target == "masks":
            self._channels[MASK] = 1
        self._columns = {name: self._column(batch, name) for name in self._channels}

    def _column(self, batch: pa.RecordBatch, name: str) -> _Column:
        where = f"{self.where}, {name}"
        column = batch.column(name)
        values = column.buffers()[2]
        return _Column(
            Lists.of(column, "u1", where=where),
            0 if values is None else values.address - pa.py_buffer(self._memory).address,
            numbers(batch.column(f"{name}.channels"), "<i4", where=where),
            numbers(batch.column(f"{name}.value_bytes"), "<i4", where=where),
        )

    def pixels(self, name: str, row: int, size_hw: tuple[int, int]) -> Tensor:
        """[C, H, W]."""
        column = self._columns[name]
        start, end = column.lists.span(row)
        channels, value_bytes = int(column.channels_R[row]), int(column.value_bytes_R[row])
        num_bytes = channels * size_hw[0] * size_hw[1] * value_bytes
        dtype = (MASK_TYPES if name == MASK else MODALITY_TYPES).get(value_bytes)
        if dtype is None or channels != self._channels[name]:
            raise self._damaged(name, row, f"{channels} channels of {value_bytes}-byte values")
        if self._codec is None:
            if end - start != num_bytes:
                raise self._damaged(name, row, f"{end - start} bytes, not {num_bytes}")
            flat = torch.frombuffer(
                self._memory, dtype=torch.uint8, count=num_bytes, offset=column.offset + start
            )
            # Wider values may be unaligned, which a view of another type does not allow.
            flat = flat.clone() if value_bytes > 1 else flat
        else:
            try:
                content = self._codec.decompress(column.lists.values[start:end], num_bytes)
            except OSError as error:  # too long, too short, or no zstd
                raise self._damaged(name, row, str(error).strip()) from None
            flat = torch.frombuffer(content, dtype=torch.uint8)
        pixels_CHW = flat.view(dtype).view(channels, *size_hw)
        if self._codec is not None:
            restore(pixels_CHW)
        return pixels_CHW

    def mask(self, row: int, size_hw: tuple[int, int]) -> Mask:
        ids_HW = self.pixels(MASK, row, size_hw)[0]
        if not are_ids(ids_HW, self._num_classes):
            raise DataError(
                f"{self.where}, row {row}: expected ids in 0..{self._num_classes - 1}, {ANOMALY} or {IGNORE} in the "
                "mask, got others; convert the set again"
            )
        return Mask(ids_HW)

    def _damaged(self, name: str, row: int, found: str) -> DataError:
        return DataError(
            f"{self.where}, row {row}: expected {name} pixels of the size given in the index, got {found}; the file is "
            "damaged, copy it again or convert the set again"
        )

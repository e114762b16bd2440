"""Write samples as the bytes of a shard and of the index: the same samples give the same bytes."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, field
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from raydet.data.shards.layout import ENTRY, INDEX_SCHEMA, MAX_PIXELS, MAX_SIDE_PX, shard_schema
from raydet.data.shards.manifest import Encoding, ModalityEntry, TargetKind
from raydet.data.shards.residuals import residuals
from raydet.data.shards.target import check_target, kind_of, stored_parts
from raydet.errors import DataError
from raydet.structures import Sample

ZSTD_LEVEL = 3
SUMMARY = b"raydet.summary"


@dataclass(slots=True)
class ChannelSums:
    """Sums of one channel over many images. uint8 pixels are summed as integers: exactly, in any order.

    NumPy sums the floats, because torch's order of summation depends on the number of threads.
    """

    count: int = 0
    total: int = 0
    squares: int = 0
    float_count: int = 0
    float_total: float = 0.0
    float_squares: float = 0.0

    def add(self, pixels_HW: Tensor) -> None:
        if pixels_HW.dtype == torch.uint8:
            counts = torch.bincount(pixels_HW.flatten(), minlength=256).tolist()
            self.count += pixels_HW.numel()
            self.total += sum(value * count for value, count in enumerate(counts))
            self.squares += sum(value * value * count for value, count in enumerate(counts))
        else:
            values = pixels_HW.contiguous().numpy().astype(np.float64)
            self.float_count += values.size
            self.float_total += float(values.sum())
            self.float_squares += float(np.square(values).sum())

    def as_row(self) -> list[int | float]:
        """The fields in order: `ChannelSums(*row)` restores them."""
        return list(astuple(self))


@dataclass(slots=True)
class Summary:
    """The record of a shard beside its entries, kept until the manifest is written."""

    sha256: str
    size_bytes: int
    plan: str
    """Hash of the conversion's plan."""
    channels: dict[str, list[ChannelSums]] = field(default_factory=dict)
    left_out: list[tuple[str, str]] = field(default_factory=list)
    """Name and reason."""

    def to_json(self) -> bytes:
        channels = {name: [sums.as_row() for sums in rows] for name, rows in self.channels.items()}
        content = {
            "sha256": self.sha256,
            "size_bytes": self.size_bytes,
            "plan": self.plan,
            "channels": channels,
            "left_out": self.left_out,
        }
        return json.dumps(content).encode()

    @classmethod
    def from_json(cls, text: bytes) -> Self:
        content = json.loads(text)
        channels = {
            name: [ChannelSums(*row) for row in rows] for name, rows in content.pop("channels").items()
        }
        left_out = [(name, reason) for name, reason in content.pop("left_out")]
        return cls(**content, channels=channels, left_out=left_out)


class ShardBuilder:
    """Collects samples; `finish` returns the bytes of the shard and of its part of the index."""

    def __init__(
        self,
        modalities: Sequence[str],
        encoding: Encoding,
        *,
        num_classes: int,
        target: TargetKind = "boxes",
    ) -> None:
        self._num_classes, self._target = num_classes, target
        self._schema = shard_schema(modalities, has_masks=target == "masks")
        self._modalities = tuple(modalities)
        self._codec = pa.Codec("zstd", compression_level=ZSTD_LEVEL) if encoding == "zstd" else None
        self._columns: dict[str, list[Any]] = {name: [] for name in self._schema.names}
        self._channels: dict[str, list[ChannelSums]] = {}

    def add(self, sample: Sample) -> None:
        """Add an image, which must have all modalities of the shard and its kind of target.

        Raises:
            DataError: the sample is invalid, see `check_sample`.
        """
        check_sample(sample, self._modalities, self._num_classes)
        if kind_of(sample.target) != self._target:
            raise DataError(
                f"{sample.image_id}: expected {self._target} as in earlier images, got {kind_of(sample.target)}; "
                "correct or remove the image"
            )
        self._check_channels(sample)
        height, width = sample.source_hw
        boxes_xyxy, labels, masks = stored_parts(sample.target, is_labelled=sample.is_labelled)
        row: dict[str, Any] = {
            "image_id": sample.image_id,
            "group_id": sample.group_id,
            "height": height,
            "width": width,
            "boxes_xyxy": boxes_xyxy.flatten().tolist(),
            "labels": labels.tolist(),
        }
        digest = hashlib.sha256()
        for name, x_CHW in {**{name: sample.modalities[name] for name in self._modalities}, **masks}.items():
            pixels_CHW = x_CHW.contiguous()
            content = pixels_CHW.numpy().tobytes()
            digest.update(f"{name} {pixels_CHW.dtype} {tuple(pixels_CHW.shape)}\n".encode())
            digest.update(content)
            if self._codec is not None:
                content = self._codec.compress(residuals(pixels_CHW).numpy().tobytes(), asbytes=True)
            row[name] = content
            row[f"{name}.channels"], row[f"{name}.value_bytes"] = len(pixels_CHW), pixels_CHW.element_size()
            if name in masks:
                continue
            sums = self._channels.setdefault(name, [ChannelSums() for _ in pixels_CHW])
            for channel, pixels_HW in zip(sums, pixels_CHW, strict=True):
                channel.add(pixels_HW)
        row["pixels_sha256"] = digest.digest()
        for name, values in self._columns.items():
            values.append(row[name])

    def _check_channels(self, sample: Sample) -> None:
        """Compare channel counts before anything is added: an image that is left out must leave no trace."""
        for name, sums in self._channels.items():
            num_channels = len(sample.modalities[name])
            if num_channels != len(sums):
                raise DataError(
                    f"{sample.image_id}: expected {len(sums)} channels of {name} as in earlier images, got "
                    f"{num_channels}; correct or remove the image"
                )

    def finish(self, *, plan: str, left_out: Sequence[tuple[str, str]]) -> tuple[bytes, bytes]:
        """The bytes of the shard, and of its entries with a `Summary`."""
        arrays = [pa.array(self._columns[field.name], field.type) for field in self._schema]
        batch = pa.RecordBatch.from_arrays(arrays, schema=self._schema)
        shard = _file_of(batch)
        sha256 = hashlib.sha256(shard).hexdigest()
        summary = Summary(sha256, len(shard), plan, self._channels, list(left_out))
        entries = batch.select(ENTRY.names)
        return shard, _file_of(entries.replace_schema_metadata({SUMMARY: summary.to_json()}))


def check_sample(sample: Sample, modalities: Sequence[str], num_classes: int) -> None:
    """Check that a sample can be stored.

    Raises:
        DataError: a modality is missing, or the type, size or range of pixels or target is wrong.
    """
    height, width = sample.source_hw
    if max(height, width) > MAX_SIDE_PX or height * width > MAX_PIXELS or min(height, width) < 1:
        raise DataError(
            f"{sample.image_id}: expected an image of at most {MAX_SIDE_PX} x {MAX_SIDE_PX} and {MAX_PIXELS} pixels, "
            f"got {width} x {height}; scale it down"
        )
    for name in modalities:
        pixels = sample.modalities.get(name)
        is_valid = (
            pixels is not None
            and pixels.ndim == 3
            and pixels.shape[-2:] == (height, width)
            and pixels.dtype in (torch.uint8, torch.float32)
        )
        if pixels is None or not is_valid:
            found = "none" if pixels is None else f"{pixels.dtype} {tuple(pixels.shape)}"
            raise DataError(
                f"{sample.image_id}: expected uint8 or float32 pixels C x {height} x {width} of {name}, got {found}; "
                "correct or remove the image"
            )
        if pixels.dtype == torch.float32 and not bool(((pixels >= 0) & (pixels <= 1)).all()):
            raise DataError(f"{sample.image_id}: {name} values must be in 0..1; correct or remove the image")
    check_target(sample, num_classes)


def read_part(content: bytes) -> tuple[pa.RecordBatch, Summary]:
    """The entries and the summary of a shard, as written by `ShardBuilder.finish`.

    Raises:
        DataError: the record is damaged.
    """
    try:
        reader = pa.ipc.open_file(pa.BufferReader(content))
        return reader.get_batch(0), Summary.from_json(reader.schema.metadata[SUMMARY])
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"the record of an unfinished shard is damaged ({error})") from None


def index_file(parts: Iterable[pa.RecordBatch]) -> bytes:
    """The bytes of the index: all entries in one batch, so that each column is contiguous."""
    table = pa.Table.from_batches((batch.replace_schema_metadata(None) for batch in parts), ENTRY)
    arrays = []
    for name in ENTRY.names:
        column = table[name].combine_chunks()
        arrays.append(column.dictionary_encode() if name == "group_id" else column)
    return _file_of(pa.RecordBatch.from_arrays(arrays, schema=INDEX_SCHEMA))


def modality_entries(summaries: Iterable[Summary], names: Sequence[str]) -> dict[str, ModalityEntry]:
    """Number of channels, mean and standard deviation of each modality.

    Raises:
        DataError: shards differ in the number of channels.
    """
    rows = [summary.channels for summary in summaries if summary.channels]
    entries = {}
    for name in names:
        counts = {len(row[name]) for row in rows}
        if len(counts) != 1:
            raise DataError(
                f"expected the same number of channels of {name} in all images, got {sorted(counts)}; correct the set"
            )
        moments = [_moments([row[name][channel] for row in rows]) for channel in range(counts.pop())]
        entries[name] = ModalityEntry(
            channels=len(moments), mean=tuple(m for m, _ in moments), std=tuple(s for _, s in moments)
        )
    return entries


def _moments(parts: Sequence[ChannelSums]) -> tuple[float, float]:
    """Mean and standard deviation on a 0..1 scale."""
    count = sum(part.count + part.float_count for part in parts)
    mean = (sum(p.total for p in parts) / 255 + math.fsum(p.float_total for p in parts)) / count
    squares = sum(p.squares for p in parts) / 255**2 + math.fsum(p.float_squares for p in parts)
    return mean, math.sqrt(max(0.0, squares / count - mean**2))


def _file_of(batch: pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_file(sink, batch.schema) as writer:
        writer.write_batch(batch)
    return sink.getvalue().to_pybytes()

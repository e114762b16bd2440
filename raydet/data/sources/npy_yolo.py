"""Arrays with YOLO labels: `images/<stem>.npy`, `labels/<stem>.txt`.

An array is H x W x 5 (R, G, B, thermal, event), uint8 or float, values 0..255; all arrays of a set are of one kind. A
label row is `class xc yc w h`, the box relative to the image's size. An empty label file is an image without objects.

Opening reads every header and every label, but no pixel.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from torch import Tensor

from raydet.data.sources.bad_samples import BadSamples, OnBad
from raydet.data.sources.boxes import Box, box_target
from raydet.data.sources.files import Root, files_in
from raydet.data.sources.images import check_pixels
from raydet.data.sources.paired_images import check_some_left
from raydet.data.sources.pairs import paired
from raydet.data.sources.yolo_rows import outline_notes, read_rows
from raydet.errors import DataError
from raydet.files.arrays import read_array_header
from raydet.files.text import one_line
from raydet.structures import Boxes, Sample

CHANNELS: dict[str, slice] = {"rgb": slice(0, 3), "thermal": slice(3, 4), "event": slice(4, 5)}
NUM_CHANNELS = 5

logger = logging.getLogger("raydet")


@dataclass(frozen=True, slots=True)
class _Header:
    size_hw: tuple[int, int]
    is_float: bool


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    header: _Header
    boxes: Sequence[Box]
    labels: Sequence[int]


class NpyYoloSet:
    """A directory of arrays with YOLO labels, sorted by file name.

    Args:
        root: directory that holds `images/` and `labels/`.
        classes: names of the class ids 0, 1, ...
        missing: modalities whose channels are empty; they are left out of the samples.
        unlabelled: "error": every image must have a label file; "drop" leaves out every image without a box.
        is_labelled, links_into: as in `CocoSet`.
        on_bad: "skip" leaves out an image with a bad array, a bad row or a missing file.

    Raises:
        DataError: a directory, a file or a row is not as described above.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Sequence[str],
        missing: Collection[str] = (),
        unlabelled: Literal["error", "drop"] = "error",
        is_labelled: bool = True,
        links_into: str | None = None,
        on_bad: OnBad = "error",
    ) -> None:
        self.classes = tuple(classes)
        self.modalities = tuple(name for name in CHANNELS if name not in missing)
        path, bad_samples = Path(root), BadSamples(on_bad)
        drop = unlabelled == "drop" and is_labelled
        self.left_out = bad_samples.left_out
        files = _paired(Root(path, links_into), drop=drop, is_labelled=is_labelled, bad_samples=bad_samples)

        num_outlines: list[int] = []

        def read_entry(paths: Mapping[str, Path]) -> _Entry:
            header = _read_header(paths["image"])
            if not is_labelled:
                return _Entry(paths["image"], header, (), ())
            rows = read_rows(paths["label"], num_classes=len(classes), size_hw=header.size_hw)
            num_outlines.append(rows.num_outlines)
            return _Entry(paths["image"], header, rows.boxes, rows.labels)

        entries = bad_samples.read_all((stem, partial(read_entry, paths)) for stem, paths in files.items())
        check_some_left(len(entries), path, bad_samples)
        self.notes = outline_notes(sum(num_outlines))
        if drop:
            entries = [entry for entry in entries if entry.boxes]
            if not entries:
                raise DataError(
                    f"{path}: no image has a box, so data.source.unlabelled=drop leaves none; add labels"
                )
            logger.info(
                "%s: using %d images that have boxes (data.source.unlabelled=drop)", path, len(entries)
            )
        # A batch has one dtype: bytes stacked with floats would become floats in 0..255.
        entries = bad_samples.read_all(
            (entry.path.stem, partial(_check_dtype, entry, entries[0])) for entry in entries
        )
        self._entries = entries
        self.image_ids = [entry.path.stem for entry in entries]
        self.group_ids = [""] * len(entries)  # the format has no sequences

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, index: int) -> Sample:
        """One image; uint8 stays uint8, floats become float32 in 0..1."""
        target, size_hw = self.targets(index)
        entry = self._entries[index]
        if _read_header(entry.path) != entry.header:
            raise DataError(
                f"{entry.path}: the array's size or type has changed since the start; start again"
            )
        array: NDArray[Any] = npy_format.open_memmap(entry.path, mode="r")
        return Sample(
            image_id=self.image_ids[index],
            group_id=self.group_ids[index],
            modalities={name: _pixels(array, name, entry.path) for name in self.modalities},
            target=target,
            source_hw=size_hw,
            valid_hw=size_hw,
        )

    def targets(self, index: int) -> tuple[Boxes, tuple[int, int]]:
        entry = self._entries[index]
        return box_target(entry.boxes, entry.labels), entry.header.size_hw


def _paired(
    root: Root, *, drop: bool, is_labelled: bool, bad_samples: BadSamples
) -> dict[str, dict[str, Path]]:
    images = files_in(root, root.directory("images"), {".npy"})
    labels = files_in(root, root.directory("labels"), {".txt"}) if is_labelled else {}
    if "classes" not in images:
        labels.pop("classes", None)  # some labelling tools put their class list there
    if not images:
        raise DataError(
            f"{root.path / 'images'}: expected arrays (*.npy), found none; check data.source.root"
        )
    # An error may hide any number of images, so it is never dropped silently.
    bad = [name for files in (images, labels) for name, file in files.items() if isinstance(file, DataError)]
    return paired(
        {"image": images, "label": labels} if is_labelled else {"image": images},
        names=[*(images.keys() & labels.keys()), *bad] if drop else None,
        where=root.path,
        remedy="add the files, or set data.source.unlabelled=drop",
        bad_samples=bad_samples,
    )


def _check_dtype(entry: _Entry, first: _Entry) -> _Entry:
    """The entry itself, if its values are bytes or floats like those of the first one."""
    if entry.header.is_float != first.header.is_float:
        expected, got = ("float", "uint8") if first.header.is_float else ("uint8", "float")
        raise DataError(
            f"{entry.path}: expected {expected} values as in {first.path.name}, got {got}; write all arrays of a set "
            "with one type"
        )
    return entry


def _read_header(path: Path) -> _Header:
    """The header of an array; type, shape and file size are checked."""
    header = read_array_header(path)
    shape, dtype = header.shape, header.dtype
    if len(shape) != 3 or shape[2] != NUM_CHANNELS or min(shape) < 1:
        raise DataError(
            f"{path}: expected an array H x W x {NUM_CHANNELS}, got shape {one_line(shape)}; write RGB, thermal, event"
        )
    if dtype != np.uint8 and dtype.kind != "f":
        raise DataError(
            f"{path}: expected uint8 or float values, got dtype {one_line(dtype)}; convert the array"
        )
    check_pixels(shape[0], shape[1], path)
    header.check_complete(path)
    return _Header((shape[0], shape[1]), is_float=dtype.kind == "f")


def _pixels(array_HWC: NDArray[Any], modality: str, path: Path) -> Tensor:
    """[C, H, W] of one modality."""
    view_CHW = array_HWC[..., CHANNELS[modality]].transpose(2, 0, 1)
    if view_CHW.dtype == np.uint8:
        return torch.from_numpy(np.array(view_CHW, order="C"))
    with np.errstate(
        over="ignore", invalid="ignore"
    ):  # values that overflow become infinite, and are refused
        pixels_CHW = np.array(view_CHW, dtype=np.float32, order="C")
    low, high = float(pixels_CHW.min()), float(pixels_CHW.max())
    # A NaN makes both of them NaN, and every comparison with it false.
    if not (low >= 0 and high <= 255):
        raise DataError(
            f"{path}: expected values in 0..255, got {low:g}..{high:g} in the {modality} channels; repair the array "
            "or leave the image out"
        )
    return torch.from_numpy(pixels_CHW).div_(255)

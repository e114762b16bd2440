"""Arrays with YOLO labels: `images/<stem>.npy`, `labels/<stem>.txt`.

An array is H x W x 5 (R, G, B, thermal, event), uint8 or float, values 0..255; all arrays of a set are the one or the
other. A label row is `class xc yc w h`, the box relative to the image's size. A label file without rows is an image
without objects.

Opening reads every header and every label, but no pixel.
"""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from torch import Tensor

from raydet.data.sources.bad_samples import OnBad, Sieve
from raydet.data.sources.base import Targets
from raydet.data.sources.boxes import Box, target_tensors
from raydet.data.sources.files import Root, files_in, one_line, open_regular
from raydet.data.sources.images import check_pixels
from raydet.data.sources.paired_images import check_some_left
from raydet.data.sources.pairs import Files, paired
from raydet.data.sources.yolo_rows import read_rows
from raydet.errors import DataError
from raydet.structures import Sample

CHANNELS: dict[str, slice] = {"rgb": slice(0, 3), "thermal": slice(3, 4), "event": slice(4, 5)}
NUM_CHANNELS = 5
VERSIONS = ((1, 0), (2, 0), (3, 0))
"""Of the .npy format: all that numpy has written."""

logger = logging.getLogger("raydet")


@dataclass(frozen=True, slots=True)
class _Form:
    """What the header of an array says."""

    size_hw: tuple[int, int]
    is_float: bool


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    form: _Form
    boxes: Sequence[Box]
    labels: Sequence[int]


class NpyYoloSet:
    """A directory of arrays with YOLO labels, in the order of the file names.

    Args:
        root: directory that holds `images/` and `labels/`.
        classes: names of the class ids 0, 1, ...
        missing: modalities whose channel holds nothing; they are left out of the samples.
        unlabelled: "error" refuses a set in which images and labels do not pair; "drop" leaves out every image
            without a box.
        on_bad: "skip" leaves out an image with a bad array, a bad row or no partner.

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
        on_bad: OnBad = "error",
    ) -> None:
        self.classes = tuple(classes)
        self.modalities = tuple(name for name in CHANNELS if name not in missing)
        path, sieve = Path(root), Sieve(on_bad)
        self.left_out = sieve.left_out
        pairs = _paired(Root(path), drop=unlabelled == "drop", sieve=sieve)
        entries = sieve.all(
            (stem, partial(_open_image, image, label, len(self.classes)))
            for stem, (image, label) in pairs.items()
        )
        check_some_left(len(entries), path, sieve)
        if unlabelled == "drop":
            entries = _with_boxes(entries, path)
        # One batch holds one type: bytes stacked with floats would become floats in 0..255.
        entries = sieve.all((entry.path.stem, partial(_of_kind, entry, entries[0])) for entry in entries)
        self._entries = entries
        self.image_ids = [entry.path.stem for entry in entries]
        self.group_ids = [""] * len(entries)  # the format knows no sequences

    def __len__(self) -> int:
        return len(self._entries)

    def read(self, index: int) -> Sample:
        """One image; uint8 stays uint8, floats become float32 in 0..1."""
        boxes_xyxy, labels, size_hw = self.targets(index)
        path = self._entries[index].path
        array = _mapped(path, self._entries[index].form)
        return Sample(
            image_id=self.image_ids[index],
            group_id=self.group_ids[index],
            modalities={name: _pixels(array, name, path) for name in self.modalities},
            boxes_xyxy=boxes_xyxy,
            labels=labels,
            source_hw=size_hw,
            valid_hw=size_hw,
        )

    def targets(self, index: int) -> Targets:
        """The boxes alone; no pixel is read."""
        entry = self._entries[index]
        return *target_tensors(entry.boxes, entry.labels), entry.form.size_hw


def _paired(root: Root, *, drop: bool, sieve: Sieve) -> dict[str, tuple[Path, Path]]:
    images = files_in(root, root.directory("images"), {".npy"})
    labels = files_in(root, root.directory("labels"), {".txt"})
    if "classes" not in images:
        labels.pop("classes", None)  # some labelling tools put their class list there
    if not images:
        raise DataError(f"{root.path / 'images'}: wanted arrays (*.npy), found none; check data.source.root")
    pairs = paired(
        {"image": images, "label": labels},
        names=_labelled(images, labels) if drop else None,
        where=root.path,
        remedy="add the files, or set data.source.unlabelled=drop",
        sieve=sieve,
    )
    return {stem: (files["image"], files["label"]) for stem, files in pairs.items()}


def _labelled(images: Files, labels: Files) -> list[str]:
    """The images that have a label file, and what must not be read: nobody knows which images are behind it."""
    bad = [name for files in (images, labels) for name, file in files.items() if isinstance(file, DataError)]
    return [*(images.keys() & labels.keys()), *bad]


def _with_boxes(entries: list[_Entry], root: Path) -> list[_Entry]:
    kept = [entry for entry in entries if entry.boxes]
    if not kept:
        raise DataError(
            f"{root}: no image has a box, with data.source.unlabelled=drop none is left; add labels"
        )
    logger.info("%s: using %d images that have boxes (data.source.unlabelled=drop)", root, len(kept))
    return kept


def _open_image(image: Path, label: Path, num_classes: int) -> _Entry:
    form = _read_form(image)
    boxes, labels = read_rows(label, num_classes=num_classes, size_hw=form.size_hw)
    return _Entry(image, form, boxes, labels)


def _of_kind(entry: _Entry, first: _Entry) -> _Entry:
    """The image itself, if it holds bytes or floats as the first does."""
    if entry.form.is_float != first.form.is_float:
        wanted, got = ("float", "uint8") if first.form.is_float else ("uint8", "float")
        raise DataError(
            f"{entry.path}: wanted {wanted} values, as {first.path.name} has, got {got}; write all arrays of a set "
            "with one type"
        )
    return entry


def _read_form(path: Path) -> _Form:
    """From the header, after a look at type, shape and file size."""
    try:
        file = open_regular(path)
    except OSError as error:
        raise DataError(f"{path}: wanted a .npy array, {error.strerror or error}; check the file") from error
    with file:
        shape, dtype = _read_header(file, path)
        header_bytes = file.tell()
        file.seek(0, 2)
        found_bytes = file.tell()
    if len(shape) != 3 or shape[2] != NUM_CHANNELS or min(shape) < 1:
        raise DataError(
            f"{path}: wanted an array H x W x {NUM_CHANNELS}, got shape {one_line(shape)}; write RGB, thermal, event"
        )
    if dtype != np.uint8 and dtype.kind != "f":
        raise DataError(
            f"{path}: wanted uint8 or float values, got dtype {one_line(dtype)}; convert the array"
        )
    check_pixels(shape[0], shape[1], path)
    wanted_bytes = header_bytes + math.prod(shape) * dtype.itemsize
    if found_bytes != wanted_bytes:
        raise DataError(
            f"{path}: wanted {wanted_bytes} bytes for {shape} {dtype}, the file has {found_bytes}; "
            "it is truncated or damaged, copy it again"
        )
    return _Form((shape[0], shape[1]), is_float=dtype.kind == "f")


def _read_header(file: BinaryIO, path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of headers that Python 2 wrote; they are read all the same
            version = npy_format.read_magic(file)
            if version not in VERSIONS:
                raise ValueError(f"of format version {version}")
            read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
            shape, _, dtype = read(file)
    except Exception as error:  # the header is a Python literal: numpy's reader fails in many ways
        raise DataError(
            f"{path}: wanted a .npy array, got another file ({one_line(error)}); write it with numpy.save"
        ) from error
    return shape, dtype


def _mapped(path: Path, form: _Form) -> NDArray[Any]:
    """The array, of the size and kind that it had at the start."""
    if _read_form(path) != form:
        raise DataError(f"{path}: the array has another size or type than at the start; start again")
    array: NDArray[Any] = npy_format.open_memmap(path, mode="r")
    return array


def _pixels(array_HWC: NDArray[Any], modality: str, path: Path) -> Tensor:
    """[C, H, W] of one modality."""
    view_CHW = array_HWC[..., CHANNELS[modality]].transpose(2, 0, 1)
    if view_CHW.dtype == np.uint8:
        return torch.from_numpy(np.array(view_CHW, order="C"))
    with np.errstate(over="ignore", invalid="ignore"):  # what does not fit becomes infinite, and is refused
        pixels_CHW = np.array(view_CHW, dtype=np.float32, order="C")
    low, high = float(pixels_CHW.min()), float(pixels_CHW.max())
    # A NaN makes both of them NaN, and every comparison with it false.
    if not (low >= 0 and high <= 255):
        raise DataError(
            f"{path}: wanted values in 0..255, got {low:g}..{high:g} in the {modality} channels; repair the array "
            "or leave the image out"
        )
    return torch.from_numpy(pixels_CHW).div_(255)

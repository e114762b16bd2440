"""Arrays with YOLO labels: `images/<stem>.npy`, `labels/<stem>.txt`.

An array is H x W x 5 (R, G, B, thermal, event), uint8 or float, values 0..255. A label row is `class xc yc w h`, the
box relative to the picture's size. A label file without rows is a picture without objects.

Opening reads every header and every label, but no pixel.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import torch
from numpy.lib import format as npy_format
from numpy.typing import NDArray
from torch import Tensor

from raydet.data.sources.base import Targets
from raydet.data.sources.boxes import Box, checked_box, target_tensors
from raydet.errors import DataError
from raydet.structures import Sample

CHANNELS: dict[str, slice] = {"rgb": slice(0, 3), "thermal": slice(3, 4), "event": slice(4, 5)}
NUM_CHANNELS = 5
SLACK = 1e-3
"""How far a box may leave the picture, relative to its size: labels are written with few digits."""
NUM_NAMED = 3
"""Files named in a message that concerns many."""

logger = logging.getLogger("raydet")


@dataclass(frozen=True, slots=True)
class _Picture:
    path: Path
    size_hw: tuple[int, int]
    boxes: tuple[Box, ...]
    labels: tuple[int, ...]


class NpyYoloSet:
    """A directory of arrays with YOLO labels, in the order of the file names.

    Args:
        root: directory that holds `images/` and `labels/`.
        classes: names of the class ids 0, 1, ...
        missing: modalities whose channel holds nothing; they are left out of the samples.
        unlabelled: "error" refuses a set in which images and labels do not pair; "drop" leaves out every picture
            without a box.

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
    ) -> None:
        self.classes = tuple(classes)
        self.modalities = tuple(name for name in CHANNELS if name not in missing)
        pairs = _paired(Path(root), drop=unlabelled == "drop")
        pictures = [_open_picture(image, label, len(self.classes)) for image, label in pairs]
        if unlabelled == "drop":
            pictures = _with_boxes(pictures, Path(root))
        self._pictures = pictures
        self.image_ids = [picture.path.stem for picture in pictures]
        self.group_ids = [""] * len(pictures)  # the format knows no sequences

    def __len__(self) -> int:
        return len(self._pictures)

    def read(self, index: int) -> Sample:
        """One picture; uint8 stays uint8, floats become float32 in 0..1."""
        boxes_xyxy, labels, size_hw = self.targets(index)
        path = self._pictures[index].path
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(
                f"{path}: cannot be read any more ({error}); it has changed since the start"
            ) from error
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
        picture = self._pictures[index]
        return *target_tensors(picture.boxes, picture.labels), picture.size_hw


def read_class_names(root: Path) -> tuple[str, ...] | None:
    """The lines of `classes.txt`, where there is one.

    Raises:
        DataError: the file is empty or names a class twice.
    """
    path = root / "classes.txt"
    if not path.is_file():
        return None
    names = tuple(line.strip() for line in path.read_text().splitlines() if line.strip())
    if not names or len(set(names)) != len(names):
        raise DataError(
            f"{path}: wanted one class name per line, all different, got {list(names)}; correct it"
        )
    return names


def _paired(root: Path, *, drop: bool) -> list[tuple[Path, Path]]:
    images = {path.stem: path for path in sorted(_directory(root, "images").glob("*.npy"))}
    labels = {path.stem: path for path in sorted(_directory(root, "labels").glob("*.txt"))}
    if "classes" not in images:
        labels.pop("classes", None)  # some labelling tools put their class list there
    if not images:
        raise DataError(f"{root / 'images'}: wanted arrays (*.npy), found none; check data.source.root")
    bare = [stem for stem in images if stem not in labels]
    orphaned = [stem for stem in labels if stem not in images]
    if not drop and (bare or orphaned):
        raise DataError(
            f"{root}: wanted one label file per image, got {len(images)} images and {len(labels)} label files: "
            f"{len(bare)} images without labels{_named(bare)}, {len(orphaned)} labels without an image"
            f"{_named(orphaned)}; add the files, or set data.source.unlabelled=drop"
        )
    return [(path, labels[stem]) for stem, path in images.items() if stem in labels]


def _directory(root: Path, name: str) -> Path:
    path = root / name
    if not path.is_dir():
        raise DataError(
            f"{root}: wanted the directories images/ and labels/, {name}/ is not there; check the path"
        )
    return path


def _named(stems: Sequence[str]) -> str:
    more = ", ..." if len(stems) > NUM_NAMED else ""
    return f" ({', '.join(stems[:NUM_NAMED])}{more})" if stems else ""


def _with_boxes(pictures: list[_Picture], root: Path) -> list[_Picture]:
    kept = [picture for picture in pictures if picture.boxes]
    if not kept:
        raise DataError(
            f"{root}: no picture has a box, with data.source.unlabelled=drop none is left; add labels"
        )
    logger.info("%s: using %d pictures that have boxes (data.source.unlabelled=drop)", root, len(kept))
    return kept


def _open_picture(image: Path, label: Path, num_classes: int) -> _Picture:
    size_hw = _read_size(image)
    boxes: list[Box] = []
    labels: list[int] = []
    for number, row in enumerate(_lines(label), start=1):
        if row.strip():
            where = f"{label}, row {number}"
            label_id, relative = _parsed_row(row, num_classes, where)
            boxes.append(_absolute(relative, size_hw, where))
            labels.append(label_id)
    return _Picture(path=image, size_hw=size_hw, boxes=tuple(boxes), labels=tuple(labels))


def _read_size(path: Path) -> tuple[int, int]:
    """Height and width from the header, after a look at type, shape and file size."""
    with path.open("rb") as file:
        shape, dtype = _read_header(file, path)
        header_bytes = file.tell()
        file.seek(0, 2)
        found_bytes = file.tell()
    if len(shape) != 3 or shape[2] != NUM_CHANNELS or 0 in shape:
        raise DataError(
            f"{path}: wanted an array H x W x {NUM_CHANNELS}, got shape {shape}; write RGB, thermal, event"
        )
    if dtype != np.uint8 and dtype.kind != "f":
        raise DataError(f"{path}: wanted uint8 or float values, got dtype {dtype}; convert the array")
    wanted_bytes = header_bytes + int(np.prod(shape)) * dtype.itemsize
    if found_bytes != wanted_bytes:
        raise DataError(
            f"{path}: wanted {wanted_bytes} bytes for {shape} {dtype}, the file has {found_bytes}; "
            "it is truncated or damaged, copy it again"
        )
    return shape[0], shape[1]


def _read_header(file: BinaryIO, path: Path) -> tuple[tuple[int, ...], np.dtype[Any]]:
    try:
        version = npy_format.read_magic(file)
        read = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
        shape, _, dtype = read(file)
    except ValueError as error:
        raise DataError(
            f"{path}: wanted a .npy array, got another file ({error}); write it with numpy.save"
        ) from error
    return shape, dtype


def _lines(label: Path) -> list[str]:
    try:
        return label.read_text().splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{label}: wanted text rows `class xc yc w h`, got bytes that are no text") from error


def _parsed_row(row: str, num_classes: int, where: str) -> tuple[int, tuple[float, ...]]:
    tokens = row.split()
    try:
        class_id, *relative = map(float, tokens)
    except ValueError:
        raise DataError(
            f"{where}: wanted five numbers `class xc yc w h`, got {row.strip()!r}; correct the row"
        ) from None
    if len(relative) != 4:
        raise DataError(
            f"{where}: wanted five numbers `class xc yc w h`, got {len(tokens)}: {row.strip()!r}; correct the row"
        )
    if not class_id.is_integer() or not 0 <= class_id < num_classes:
        raise DataError(
            f"{where}: wanted a class id in 0..{num_classes - 1}, got {tokens[0]}; correct the row, or name "
            "all classes in data.classes"
        )
    return int(class_id), tuple(relative)


def _absolute(relative: tuple[float, ...], size_hw: tuple[int, int], where: str) -> Box:
    xc, yc, w, h = relative
    height, width = size_hw
    return checked_box(
        ((xc - w / 2) * width, (yc - h / 2) * height, (xc + w / 2) * width, (yc + h / 2) * height),
        picture_hw=size_hw,
        slack_hw=(SLACK * height, SLACK * width),
        where=where,
    )


def _pixels(array_HWC: NDArray[Any], modality: str, path: Path) -> Tensor:
    """[C, H, W] of one modality."""
    view_CHW = array_HWC[..., CHANNELS[modality]].transpose(2, 0, 1)
    if view_CHW.dtype == np.uint8:
        return torch.from_numpy(np.array(view_CHW, order="C"))
    pixels_CHW = np.array(view_CHW, dtype=np.float32, order="C")
    low, high = float(pixels_CHW.min()), float(pixels_CHW.max())
    # A NaN makes both of them NaN, and every comparison with it false.
    if not (low >= 0 and high <= 255):
        raise DataError(
            f"{path}: wanted values in 0..255, got {low:g}..{high:g} in the {modality} channels; repair the array "
            "or leave the picture out"
        )
    return torch.from_numpy(pixels_CHW).div_(255)

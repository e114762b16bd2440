"""A directory of images per modality and of YOLO rows per label set: the layout of MSRS.

    vi/00001D.png   ir/00001D.png   labels_vi/00001D.txt   labels_ir/00001D.txt   labels_fusion/00001D.txt

or `images/visible/`, `images/infrared/`, `labels/visible/`, ..., or other names given in the config. Directories are
searched recursively; files are paired by their stems. An empty label file means an image without objects; an image
without a label file is an error.

Label sets differ in the objects that only one sensor sees, so the config names the one to use: `rgb`, `thermal`,
`fused` (drawn on an image fused from both, or on both at once; a plain `labels/` counts as this), or `union` of the
first two, in which two boxes of one class are one object if they overlap enough and each is the other's best match;
its box is the smallest that encloses both.

Legend: N, M boxes of two sets.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from raydet.data.sources.bad_samples import BadSamples, OnBad
from raydet.data.sources.boxes import Box, check_count
from raydet.data.sources.files import IMAGES, Root, files_in
from raydet.data.sources.images import MODALITY_NAMES, ThermalRange, check_sizes
from raydet.data.sources.paired_images import Image, PairedImages
from raydet.data.sources.pairs import paired
from raydet.data.sources.yolo_rows import outline_notes, read_rows
from raydet.errors import DataError

Policy = Literal["rgb", "thermal", "union", "fused"]

IMAGE_NAMES: dict[str, tuple[str, ...]] = {
    "rgb": ("vi", "visible", "rgb"),
    "thermal": ("ir", "infrared", "thermal", "lwir"),
    "event": ("event", "events"),
}
LABEL_NAMES: dict[str, tuple[str, ...]] = {
    "rgb": IMAGE_NAMES["rgb"],
    "thermal": IMAGE_NAMES["thermal"],
    "fused": ("fusion", "fused"),
}
SETS_OF: dict[Policy, tuple[str, ...]] = {
    "rgb": ("rgb",),
    "thermal": ("thermal",),
    "union": ("rgb", "thermal"),
    "fused": ("fused",),
}

Targets = tuple[list[Box], list[int]]


class YoloSet(PairedImages):
    """The images of such a directory, sorted by name.

    Args:
        classes: names of the class ids 0, 1, ...
        labels: the label set to use.
        missing: modalities to leave out.
        image_directories: by modality; others are found by their usual names.
        label_directories: by label set ("rgb", "thermal", "fused"); others are found by their usual names.
        union_iou: smallest IoU of two boxes of the union that are one object, 0..1.
        group_prefix: number of leading characters of a name that identify the sequence.
        thermal_range: see `raydet.data.sources.images`.
        is_labelled, links_into: as in `CocoSet`.
        on_bad: "skip" leaves out an image with a bad file, a bad row or a missing file.

    Raises:
        DataError: a directory or a file is not as described above.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Sequence[str],
        labels: Policy,
        missing: Collection[str] = (),
        image_directories: Mapping[str, str] | None = None,
        label_directories: Mapping[str, str] | None = None,
        union_iou: float = 0.5,
        group_prefix: int = 0,
        thermal_range: ThermalRange | None = None,
        is_labelled: bool = True,
        links_into: str | None = None,
        on_bad: OnBad = "error",
    ) -> None:
        base, bad_samples = Root(Path(root), links_into), BadSamples(on_bad)
        images_in = find_images(base.path) | dict(image_directories or {})
        modalities = tuple(name for name in MODALITY_NAMES if name in images_in and name not in missing)
        if not images_in:
            usual = ", ".join(f"{'/, '.join(names)}/" for names in IMAGE_NAMES.values())
            raise DataError(
                f"{base.path}: expected a directory of images per modality ({usual}, or the same below images/), found "
                "none; name them, for example yolo:PATH?rgb=colour&thermal=warm"
            )
        listings = {name: files_in(base, base.directory(images_in[name]), IMAGES) for name in modalities}
        labels_in = find_labels(base.path) | dict(label_directories or {})
        kinds = [f"{name} label" for name in SETS_OF[labels]]
        for name, kind in zip(SETS_OF[labels], kinds, strict=True) if is_labelled else ():
            if name not in labels_in:
                raise DataError(
                    f"{base.path}: data.source.labels={labels} needs labels for {name}, found labels for "
                    f"{', '.join(labels_in) or 'nothing'}; choose another, or name the directory in "
                    f"data.source.labels_{name}"
                )
            listings[kind] = files_in(base, base.directory(labels_in[name]), {".txt"})
            listings[kind].pop("classes", None)  # some labelling tools put their class list there
        remedy = "add the files (an empty label file means no objects), or delete the rest of the image"
        files = paired(listings, where=base.path, remedy=remedy, bad_samples=bad_samples)

        num_outlines: list[int] = []

        def read_image(key: str) -> Image:
            pixels, where = {name: files[key][name] for name in modalities}, f"{base.path}, image {key}"
            size_hw = check_sizes(pixels, where, thermal_range=thermal_range)
            if not is_labelled:
                return Image(key, key[:group_prefix], pixels, size_hw)
            found = [read_rows(files[key][kind], num_classes=len(classes), size_hw=size_hw) for kind in kinds]
            num_outlines.extend(rows.num_outlines for rows in found)
            sets = [(rows.boxes, rows.labels) for rows in found]
            boxes, ids = sets[0] if len(sets) == 1 else union(sets[0], sets[1], min_iou=union_iou)
            check_count(len(boxes), where)
            return Image(key, key[:group_prefix], pixels, size_hw, boxes, ids)

        images = bad_samples.read_all((key, partial(read_image, key)) for key in files)
        super().__init__(
            images,
            where=base.path,
            classes=classes,
            modalities=modalities,
            thermal_range=thermal_range,
            bad_samples=bad_samples,
            notes=outline_notes(sum(num_outlines)),
        )


def find_images(root: Path) -> dict[str, str]:
    """The image directories with a usual name, by modality."""
    return _first_existing(root, {k: (*v, *(f"images/{n}" for n in v)) for k, v in IMAGE_NAMES.items()})


def find_labels(root: Path) -> dict[str, str]:
    """The label directories with a usual name, by label set."""
    found = _first_existing(
        root,
        {
            k: (*(f"labels_{n}" for n in v), *(f"labels/{n}" for n in v), *(f"{n}_labels" for n in v))
            for k, v in LABEL_NAMES.items()
        },
    )
    is_parent = any(name.startswith("labels/") for name in found.values())
    if "fused" not in found and not is_parent and (root / "labels").is_dir():
        found["fused"] = "labels"
    return found


def union(first: Targets, second: Targets, *, min_iou: float) -> Targets:
    """The objects of both sets: all of the first, then those of the second that the first lacks.

    >>> union(([(0, 0, 4, 4)], [1]), ([(0, 0, 4, 5), (8, 8, 9, 9)], [1, 0]), min_iou=0.5)
    ([(0, 0, 4, 5), (8, 8, 9, 9)], [1, 0])
    """
    (boxes_N, labels_N), (boxes_M, labels_M) = first, second
    if not boxes_N or not boxes_M:
        return [*boxes_N, *boxes_M], [*labels_N, *labels_M]
    partner_N = _partners(first, second, min_iou)
    merged = [
        box if other < 0 else _hull(box, boxes_M[other])
        for box, other in zip(boxes_N, partner_N.tolist(), strict=True)
    ]
    rest = sorted(set(range(len(boxes_M))) - set(partner_N.tolist()))
    return [*merged, *(boxes_M[i] for i in rest)], [*labels_N, *(labels_M[i] for i in rest)]


def _partners(first: Targets, second: Targets, min_iou: float) -> NDArray[np.int64]:
    """int64 [N]: the box of the second set that is the same object, or -1."""
    boxes_N, boxes_M = np.array(first[0]), np.array(second[0])
    labels_N, labels_M = np.array(first[1]), np.array(second[1])
    best_N = np.full(len(boxes_N), -1)
    best_M, best_iou_M = np.full(len(boxes_M), -1), np.zeros(len(boxes_M))
    for row in range(len(boxes_N)):  # not all pairs at once: 10,000 x 10,000 would not fit in memory
        iou_M = np.where(labels_M == labels_N[row], _iou(boxes_N[row], boxes_M), 0)
        best = int(iou_M.argmax())
        if iou_M[best] >= min_iou:
            best_N[row] = best
        is_better_M = iou_M > best_iou_M
        best_M[is_better_M], best_iou_M[is_better_M] = row, iou_M[is_better_M]
    is_mutual_N = (best_N >= 0) & (best_M[best_N] == np.arange(len(best_N)))
    return np.where(is_mutual_N, best_N, -1)


def _iou(box: NDArray[np.float64], boxes_M: NDArray[np.float64]) -> NDArray[np.float64]:
    sides_M = np.minimum(box[2:], boxes_M[:, 2:]) - np.maximum(box[:2], boxes_M[:, :2])
    shared_M = sides_M.clip(min=0).prod(axis=1)
    areas_M = (boxes_M[:, 2:] - boxes_M[:, :2]).prod(axis=1)
    shares: NDArray[np.float64] = shared_M / ((box[2:] - box[:2]).prod() + areas_M - shared_M)
    return shares


def _hull(a: Box, b: Box) -> Box:
    x1, y1, x2, y2 = np.array([np.minimum(a, b)[:2], np.maximum(a, b)[2:]]).flatten().tolist()
    return x1, y1, x2, y2


def _first_existing(root: Path, names: Mapping[str, Sequence[str]]) -> dict[str, str]:
    found = {key: next((n for n in some if (root / n).is_dir()), None) for key, some in names.items()}
    return {key: name for key, name in found.items() if name is not None}

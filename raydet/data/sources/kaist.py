"""KAIST multispectral pedestrians: videos of paired frames.

    [images/]set00/V000/visible/I00000.jpg     annotations/set00/V000/I00000.txt (or .xml)
    [images/]set00/V000/lwir/I00000.jpg

A txt is in Piotr Dollar's bbGt format (`% bbGt version=3`, then rows `name x y w h occ xv yv wv hv ignore angle`), as
converted from the published vbb files; an xml has x, y, w, h in its `bndbox`. A frame's id is `set00_V000_I00000`, as
in KAIST's evaluation, its group `set00/V000`.

Rows with the ignore flag, and those named in `ignore`, are left out like COCO's crowds: as in KAIST's own evaluation, a
detection on one is neither right nor wrong.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from raydet.data.sources.bad_samples import BadSamples, OnBad
from raydet.data.sources.boxes import check_count
from raydet.data.sources.files import IMAGES, Root, directories_in, files_in
from raydet.data.sources.images import ThermalRange
from raydet.data.sources.named_boxes import Annotation, NamedBox, NamedSet
from raydet.data.sources.pairs import Files, paired
from raydet.data.sources.voc_xml import read_voc
from raydet.errors import DataError
from raydet.files.text import one_line, read_names, read_text

DIRECTORIES = {"rgb": "visible", "thermal": "lwir"}
SET, VIDEO = re.compile(r"set\d\d"), re.compile(r"V\d\d\d")
IGNORE_COLUMN = 10


class KaistSet(NamedSet):
    """The frames of the set, sorted by id.

    Args:
        root: directory that holds the sets, or `images/` with the sets.
        annotations: directory of the annotations.
        subset: file with the frames to use (`set00/V000/I00019`), relative to the root; default: all.
        classes, missing, ignore, thermal_range, is_labelled, links_into, on_bad: as in `VocSet`.

    Raises:
        DataError: a directory or a file is not as described above.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        classes: Sequence[str] | None = None,
        missing: Collection[str] = (),
        annotations: str = "annotations",
        subset: str | None = None,
        ignore: Collection[str] = ("person?", "person?a", "people", "cyclist"),
        thermal_range: ThermalRange | None = None,
        is_labelled: bool = True,
        links_into: str | None = None,
        on_bad: OnBad = "error",
    ) -> None:
        base, bad_samples = Root(Path(root), links_into), BadSamples(on_bad)
        modalities = tuple(name for name in DIRECTORIES if name not in missing)
        listings = _listings(base, modalities, annotations if is_labelled else None)
        names = None
        if subset is not None:
            lines = read_names(base.inside(subset, f"{base.path}, subset"), expected="one frame per line")
            names = [line.replace("/", "_") for line in lines]
        remedy = "add the files or remove the frame from the list"
        super().__init__(
            paired(listings, names=names, where=base.path, remedy=remedy, bad_samples=bad_samples),
            root=base.path,
            modalities=modalities,
            read=_read_annotation,
            group_of=lambda image_id: "/".join(image_id.split("_", 2)[:2]),
            ignore=ignore,
            ignores_regions=True,
            classes=classes,
            thermal_range=thermal_range,
            bad_samples=bad_samples,
        )


def sets_directory(root: Path) -> Path | None:
    """The directory that holds `set00`, `set01`, ...; None: there is none."""
    for path in (root, root / "images"):
        if path.is_dir() and any(map(SET.fullmatch, directories_in(path))):
            return path
    return None


def _listings(base: Root, modalities: Sequence[str], annotations: str | None) -> dict[str, Files]:
    sets = sets_directory(base.path)
    if sets is None:
        raise DataError(
            f"{base.path}: expected the directories set00, set01, ..., found none; check the path"
        )
    annotation_root = None if annotations is None else base.directory(annotations)
    kinds = modalities if annotation_root is None else (*modalities, "annotation")
    found: dict[str, dict[str, Path | DataError]] = {name: {} for name in kinds}
    videos = [
        Path(set_, video)
        for set_ in filter(SET.fullmatch, directories_in(sets))
        for video in filter(VIDEO.fullmatch, directories_in(sets / set_))
    ]
    for video in videos:
        key = "_".join(video.parts)
        for name in modalities:
            directory = base.directory(str((sets / video / DIRECTORIES[name]).relative_to(base.path)))
            frames = files_in(base, directory, IMAGES)
            found[name] |= {f"{key}_{stem}": path for stem, path in frames.items()}
        if annotation_root is not None and (annotation_root / video).is_dir():
            directory = base.directory(str((annotation_root / video).relative_to(base.path)))
            texts = files_in(base, directory, {".txt", ".xml"})
            found["annotation"] |= {f"{key}_{stem}": path for stem, path in texts.items()}
    return dict(found)


def _read_annotation(path: Path) -> Annotation:
    if path.suffix.lower() == ".xml":
        return read_voc(path, first_pixel=0)
    rows = [row.strip() for row in read_text(path, expected="bbGt rows").splitlines()]
    check_count(sum(bool(row) for row in rows), str(path))
    return Annotation(
        [
            _box(row, f"{path}, row {number}")
            for number, row in enumerate(rows, start=1)
            if row and not row.startswith("%")
        ]
    )


def _box(row: str, where: str) -> NamedBox:
    columns = row.split()
    try:
        name, (x, y, w, h) = columns[0], map(float, columns[1:5])
        is_ignored = len(columns) > IGNORE_COLUMN and float(columns[IGNORE_COLUMN]) != 0
    except ValueError:
        raise DataError(
            f"{where}: expected `name x y w h ...`, got {one_line(row)!r}; correct the row"
        ) from None
    return NamedBox(name, (x, y, x + w, y + h), where, is_ignored)

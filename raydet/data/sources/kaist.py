"""KAIST multispectral pedestrians: videos of paired frames.

    [images/]set00/V000/visible/I00000.jpg     annotations/set00/V000/I00000.txt (or .xml)
    [images/]set00/V000/lwir/I00000.jpg

A txt is Piotr Dollar's bbGt (`% bbGt version=3`, then rows `name x y w h occ xv yv wv hv ignore angle`), as it is
written from the published vbb files; an xml has x, y, w, h in its `bndbox`. A frame's id is `set00_V000_I00000`, as in
KAIST's evaluation, its group `set00/V000`.

Rows that are marked to be ignored, and those named in `ignore`, are left out like COCO's crowds.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from raydet.data.sources.bad_samples import OnBad, Sieve
from raydet.data.sources.boxes import check_count
from raydet.data.sources.files import (
    IMAGES,
    Root,
    directories_in,
    files_in,
    one_line,
    read_names,
    read_text,
)
from raydet.data.sources.images import ThermalRange
from raydet.data.sources.named_boxes import Annotation, NamedBox, NamedReader
from raydet.data.sources.paired_images import PairedImages
from raydet.data.sources.pairs import Files, paired
from raydet.data.sources.voc_xml import read_voc
from raydet.errors import DataError

DIRECTORIES = {"rgb": "visible", "thermal": "lwir"}
SET, VIDEO = re.compile(r"set\d\d"), re.compile(r"V\d\d\d")
NUM_COLUMNS = 12
IGNORE_COLUMN = 10


class KaistSet(PairedImages):
    """The frames of the set, in the order of their ids.

    Args:
        root: directory that holds the sets, or `images/` with the sets.
        annotations: directory of the annotations.
        subset: file with the frames to take (`set00/V000/I00019`), relative to the root; default: all.
        classes, missing, ignore, thermal_range, on_bad: as in `VocSet`.

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
        on_bad: OnBad = "error",
    ) -> None:
        place, sieve = Root(Path(root)), Sieve(on_bad)
        modalities = tuple(name for name in DIRECTORIES if name not in missing)
        files = paired(
            _listings(place, modalities, annotations),
            names=None if subset is None else _listed(place.inside(subset, f"{place.path}, subset")),
            where=place.path,
            remedy="add the files or take the frame out of the list",
            sieve=sieve,
        )
        reader = NamedReader(
            root=place.path,
            modalities=modalities,
            read=_read_annotation,
            group_of=_video_of,
            ignore=ignore,
            thermal_range=thermal_range,
        )
        images, names = reader.open(files, classes=classes, sieve=sieve)
        super().__init__(
            images,
            where=place.path,
            classes=names,
            modalities=modalities,
            thermal_range=thermal_range,
            sieve=sieve,
        )


def sets_directory(root: Path) -> Path | None:
    """The directory that holds `set00` and the like."""
    for path in (root, root / "images"):
        if path.is_dir() and any(map(SET.fullmatch, directories_in(path))):
            return path
    return None


def _listings(place: Root, modalities: Sequence[str], annotations: str) -> dict[str, Files]:
    sets = sets_directory(place.path)
    if sets is None:
        raise DataError(f"{place.path}: wanted the directories set00, set01, ..., found none; check the path")
    notes = place.directory(annotations)
    found: dict[str, dict[str, Path | DataError]] = {name: {} for name in (*modalities, "annotation")}
    for video in _videos(sets):
        key = "_".join(video)
        for name in modalities:
            directory = place.directory(str((sets / Path(*video, DIRECTORIES[name])).relative_to(place.path)))
            frames = files_in(place, directory, IMAGES)
            found[name] |= {f"{key}_{stem}": path for stem, path in frames.items()}
        if (notes / Path(*video)).is_dir():
            directory = place.directory(str((notes / Path(*video)).relative_to(place.path)))
            texts = files_in(place, directory, {".txt", ".xml"})
            found["annotation"] |= {f"{key}_{stem}": path for stem, path in texts.items()}
    return dict(found)


def _videos(sets: Path) -> Iterator[tuple[str, str]]:
    for chapter in filter(SET.fullmatch, directories_in(sets)):
        for video in filter(VIDEO.fullmatch, directories_in(sets / chapter)):
            yield chapter, video


def _listed(path: Path) -> list[str]:
    return [name.replace("/", "_") for name in read_names(path, wanted="one frame per line")]


def _video_of(image_id: str) -> str:
    chapter, video, _ = image_id.split("_", 2)
    return f"{chapter}/{video}"


def _read_annotation(path: Path) -> Annotation:
    return read_voc(path, first_pixel=0) if path.suffix.lower() == ".xml" else _read_bbgt(path)


def _read_bbgt(path: Path) -> Annotation:
    rows = [row.strip() for row in read_text(path, wanted="bbGt rows").splitlines()]
    check_count(sum(bool(row) for row in rows), str(path))
    found = [
        _box(row, f"{path}, row {number}")
        for number, row in enumerate(rows, start=1)
        if row and not row.startswith("%")
    ]
    return Annotation([box for box in found if box is not None])


def _box(row: str, where: str) -> NamedBox | None:
    """None where the row itself says that it is to be ignored."""
    columns = row.split()
    try:
        name, (x, y, w, h) = columns[0], map(float, columns[1:5])
        is_ignored = float(columns[IGNORE_COLUMN]) != 0 if len(columns) == NUM_COLUMNS else False
    except ValueError:
        raise DataError(
            f"{where}: wanted `name x y w h ...`, got {one_line(row)!r}; correct the row"
        ) from None
    return None if is_ignored else NamedBox(name, (x, y, x + w, y + h), where)

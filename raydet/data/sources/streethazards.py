"""StreetHazards: simulated streets whose test images show objects of no class (Hendrycks et al., arXiv 1911.11132).

    train/images/training/TOWN/*.png      train/annotations/training/TOWN/*.png
    train/images/validation/TOWN/*.png    train/annotations/validation/TOWN/*.png
    test/images/test/TOWN/*.png           test/annotations/test/TOWN/*.png

The values of annotations are 1 to 14, see `raydet/files/class_tables/streethazards.yaml`; 14 is the anomaly. Ids are
`training/TOWN/NAME`, so that the set's own parts are told by `data.split.kind=named`; a town is a group.

Lists (`*.odgt`) name some of the images: JSON objects with `fpath_img` and `fpath_segm`, as one list or one per line.
Paths are relative to the list or to the set.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from raydet.data.sources.bad_samples import BadSamples
from raydet.data.sources.files import IMAGES, Root, files_in
from raydet.data.sources.mask_files import MASK, MaskFiles
from raydet.data.sources.pairs import Files, paired
from raydet.errors import DataError
from raydet.files.text import one_line, read_text

PARTS: Mapping[str, str] = {"training": "train", "validation": "train", "test": "test"}
"""The directory above `images/` and `annotations/`, by part."""
IMAGE_KEY, MASK_KEY = "fpath_img", "fpath_segm"
EXPECTED = "a list of images (.odgt)"


def is_street_hazards(root: Path) -> bool:
    """Whether a directory has the layout."""
    return any((root / above / "images" / part).is_dir() for part, above in PARTS.items())


def street_hazards_files(
    root: Root, lists: Sequence[str] | None, *, is_labelled: bool, bad_samples: BadSamples
) -> dict[str, MaskFiles]:
    """The files of each image, by id.

    Args:
        lists: paths of lists below the root; None: all images in the directories.
        is_labelled: False: annotations may be missing.

    Raises:
        DataError: a file is missing, or a list is not in the format.
    """
    if lists is not None:
        listed = [item for name in lists for item in _listed(root, name, is_labelled, bad_samples)]
        return {f"{files.group_id}/{stem}": files for stem, files in listed}
    found: dict[str, MaskFiles] = {}
    for part, above in PARTS.items():
        if not (root.path / above / "images" / part).is_dir():
            continue
        directories = {"rgb": "images", MASK: "annotations"} if is_labelled else {"rgb": "images"}
        listings: dict[str, Files] = {
            kind: files_in(root, root.directory(f"{above}/{name}/{part}"), IMAGES, by_path=True)
            for kind, name in directories.items()
        }
        pairs = paired(
            listings,
            where=root.path / above,
            remedy=f"add the files, or name the images to take (data.source.lists, *.odgt) of {part}",
            bad_samples=bad_samples,
        )
        for key, paths in pairs.items():
            found[f"{part}/{key}"] = MaskFiles(str(PurePosixPath(part, key).parent), paths)
    return found


def _listed(
    root: Root, name: str, is_labelled: bool, bad_samples: BadSamples
) -> Iterator[tuple[str, MaskFiles]]:
    """The images of a list, with their stems."""
    path = root.inside(name, "data.source.lists")
    for number, entry in enumerate(_entries(path)):
        where = f"{path}, entry {number}"
        try:
            kinds = {"rgb": IMAGE_KEY, MASK: MASK_KEY} if is_labelled else {"rgb": IMAGE_KEY}
            paths = {kind: _file(root, path, entry, key, where) for kind, key in kinds.items()}
            yield paths["rgb"].stem, MaskFiles(_group(paths["rgb"], where), paths)
        except DataError as error:
            bad_samples.refuse(where, error)


def _entries(path: Path) -> list[Any]:
    text = read_text(path, expected=EXPECTED)
    try:
        found = (
            json.loads(text) if text.lstrip().startswith("[") else list(map(json.loads, text.splitlines()))
        )
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: expected {EXPECTED} in JSON, got a broken one ({error}); correct it"
        ) from None
    if not isinstance(found, list):
        raise DataError(f"{path}: expected {EXPECTED}, got {one_line(repr(found))}; correct it")
    return found


def _file(root: Root, path: Path, entry: object, key: str, where: str) -> Path:
    """The file that an entry names, relative to its list or else to the set."""
    if not isinstance(entry, dict) or not isinstance(entry.get(key), str):
        raise DataError(
            f"{where}: expected a path under {key!r}, got {one_line(repr(entry))}; correct the list"
        )
    beside = path.parent.relative_to(root.path)
    places = [root.inside(str(beside / entry[key]), where), root.inside(entry[key], where)]
    for file in places:
        if file.is_file():
            return file
    raise DataError(
        f"{where}: expected the file {one_line(places[0])}, it does not exist; add it, or take it off the list"
    )


def _group(image: Path, where: str) -> str:
    """Part and town of a path `.../images/PART/TOWN/NAME.png`."""
    parts = image.parent.parts
    place = max((i for i, part in enumerate(parts) if part == "images"), default=len(parts))
    below = parts[place + 1 :]
    if not below or below[0] not in PARTS:
        raise DataError(
            f"{where}: expected an image below images/ and {', '.join(PARTS)}, got {one_line(image)}; correct the list"
        )
    return "/".join(below)

"""The files of each image of a set with masks, found in directories.

**Groups.** The sequence of an image is said by the first letters of its name (`group_prefix`), by a name of Cityscapes
(city and sequence), or else by the subdirectory in which it lies.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from raydet.data.sources.bad_samples import BadSamples
from raydet.data.sources.files import IMAGES, Root, files_in
from raydet.data.sources.mask_layouts import SPLIT, split_names
from raydet.data.sources.pairs import Files, paired
from raydet.errors import ConfigError, DataError

MASK = "mask"
RGBT = "rgbt"
CITYSCAPES_NAME = re.compile(r"([a-z-]+_\d{6})_\d{6}")


class MaskFiles(NamedTuple):
    """The files of one image."""

    group_id: str
    paths: Mapping[str, Path]
    """By modality or `RGBT`, and by `MASK` for labelled sets."""


def files_in_directories(
    root: Root,
    directories: Mapping[str, str],
    *,
    suffixes: Mapping[str, str],
    splits: Sequence[str] | None,
    group_prefix: int,
    bad_samples: BadSamples,
) -> dict[str, MaskFiles]:
    """The files of each image, by id: its stem, below the name of the split if there are several.

    Args:
        directories: by modality or `RGBT`, and by `MASK` for labelled sets. One `{split}` in each, or in none.
        suffixes: of stems, by the same keys.
        splits: what `{split}` stands for; None: every name for which all directories exist.
        group_prefix: number of leading characters of a name that identify the sequence.

    Raises:
        DataError: a directory does not exist, or a file of an image is missing.
        ConfigError: a name in `splits` does not exist.
    """
    templates = list(directories.values())
    has_splits = any(SPLIT in template for template in templates)
    names = split_names(root.path, templates) if has_splits else [""]
    if has_splits and splits is not None:
        if unknown := [name for name in splits if name not in names]:
            raise ConfigError(
                f"data.source.splits: expected some of {', '.join(names) or 'none'}, for which "
                f"{' and '.join(templates)} exist in {root.path}, got {unknown[0]!r}"
            )
        names = list(splits)
    if not names:
        raise DataError(
            f"{root.path}: expected {' and '.join(templates)} for some split, found no name for which all exist; check "
            "the directories"
        )
    files: dict[str, MaskFiles] = {}
    for split in names:
        listings: dict[str, Files] = {}
        for kind, template in directories.items():
            found = files_in(root, root.directory(template.replace(SPLIT, split)), IMAGES)
            suffix = suffixes.get(kind, "")
            listings[kind] = {
                stem.removesuffix(suffix): file for stem, file in found.items() if stem.endswith(suffix)
            }
        pairs = paired(
            listings,
            where=root.path / split,
            remedy="add the files or delete the rest of the image; data.source.mask_suffix and its like pair names "
            "that differ",
            bad_samples=bad_samples,
        )
        files |= {
            f"{split}/{key}" if has_splits else key: MaskFiles(
                _group_of(key, split, paths, directories, root.path, group_prefix), paths
            )
            for key, paths in pairs.items()
        }
    return files


def _group_of(
    name: str, split: str, paths: Mapping[str, Path], directories: Mapping[str, str], root: Path, prefix: int
) -> str:
    if prefix:
        return name[:prefix]
    if found := CITYSCAPES_NAME.match(name):
        return found[1]
    kind = RGBT if RGBT in paths else next(iter(paths))
    below = paths[kind].parent.relative_to(root / directories[kind].replace(SPLIT, split))
    return "" if below == Path() else str(below)

"""COCO's json, as COCO itself and many other tools write it: `images`, `annotations`, `categories`.

Ids are compared by value: 1, 1.0 and "1" are the same id, whichever tool has written which.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydet.errors import DataError
from raydet.files.text import one_line, read_json

Entry = Mapping[str, Any]
Id = int | str

EXPECTED = "a COCO json"
FLAGS = {"0": 0, "1": 1, "false": 0, "true": 1}
INTEGER = re.compile(r"-?(0|[1-9]\d{0,17})", re.ASCII)


@dataclass(frozen=True, slots=True)
class CocoTree:
    """The lists of a COCO json."""

    images: Sequence[Entry]
    annotations: Sequence[Entry]
    categories: Sequence[Entry]


def read_tree(path: Path, *, is_labelled: bool = True) -> CocoTree:
    """The lists of a COCO json.

    Args:
        is_labelled: False: `annotations` and `categories` may be missing.

    Raises:
        DataError: the file cannot be read, or a list is missing.
    """
    tree = read_json(path, expected=EXPECTED)
    images = entries_of(tree, "images", where=path)
    annotations, categories = (
        entries_of(tree, key, where=path) if is_labelled or tree.get(key) is not None else []
        for key in ("annotations", "categories")
    )
    return CocoTree(images, annotations, categories)


def entries_of(tree: Any, key: str | None, *, where: Path) -> list[Entry]:
    """The list of objects under a key, or the tree itself where `key` is None.

    Raises:
        DataError: there is no such list.
    """
    entries = tree if key is None else tree.get(key) if isinstance(tree, dict) else None
    if isinstance(entries, list) and all(isinstance(entry, dict) for entry in entries):
        return entries
    place = "" if key is None else f" under {key!r}"
    found = f"an object with {one_line(', '.join(map(repr, tree)))}" if isinstance(tree, dict) else "none"
    if isinstance(tree, dict) and key in tree:
        found = one_line(repr(entries))
    remedy = "give the list itself" if key is None and isinstance(tree, dict) else "write it again"
    raise DataError(f"{where}: expected a list of objects{place}, got {found}; {remedy}")


def id_of(value: object) -> Id | None:
    """An id by its value: an integer, however it is written, or a text; None if it is no id.

    >>> id_of(1), id_of(1.0), id_of("1"), id_of("001"), id_of(1.5), id_of(True)
    (1, 1, 1, '001', None, None)
    """
    if isinstance(value, str):
        return int(value) if INTEGER.fullmatch(value) else value
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def is_ignored(annotation: Entry, where: str) -> bool:
    """Whether detections on an annotation are neither right nor wrong.

    Raises:
        DataError: a flag is neither 0 nor 1.
    """
    return any(_flag(annotation, key, where) for key in ("iscrowd", "ignore"))


def _flag(annotation: Entry, key: str, where: str) -> bool:
    found = annotation.get(key)
    value = FLAGS.get(found.lower(), found) if isinstance(found, str) else found
    if value not in (None, 0, 1):
        raise DataError(f"{where}: expected {key} 0 or 1, got {one_line(repr(found))}; correct it")
    return bool(value)


def in_order(ids: Sequence[Id]) -> list[Id]:
    """Integers first, then texts."""
    return sorted(ids, key=lambda name: (isinstance(name, str), name))

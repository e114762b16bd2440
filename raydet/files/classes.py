"""`classes.yaml`: what the values of a set's masks mean, and the class tree above them.

    classes:                  # any number, in any order
      - {id: 0, name: road, parent: flat, color: [128, 64, 128]}
      - {id: [26, 27], name: car, parent: vehicle}     # several values of the masks, one class
      - {id: 7, name: void, ignore: true}              # pixels without a label
      - {id: 14, name: anomaly, anomaly: true}         # what no class describes, in test images only
    ignore: [255]             # optional: more values without a label
    groups:                   # optional: parents of parents; a group without a parent is a root
      - {name: flat, parent: ground}
      - {name: vehicle, parent: movable}
    levels: [category, realm] # optional: names of the levels above the classes, finest first

Classes are labelled 0, 1, ... in the order of their (lowest) ids. Models do not know anomalies: their pixels count for
anomaly scores, and have no label elsewhere. Either no class has a parent, or all of them have the
same number of groups above them. `colour` is read like `color`.

SegHiero's YAML (`fine_names`, `coarse_names`, `coarse_to_fine_map` of [id] or inclusive [first, last], and the same for
`super_coarse_names`) is imported by `imported`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import yaml

from raydet.config import Level
from raydet.errors import DataError
from raydet.files.text import checked_name, one_line, read_text

Colour = tuple[int, int, int]
"""Red, green, blue, 0..255."""

EXPECTED = "a YAML file of classes"
MAX_VALUE = 65535
"""The largest value of a mask: they have at most 16 bits."""
MAX_CLASSES = 254
"""Labels are stored in 8 bits, in which 254 is "anomaly" and 255 is "no label"."""
CLASS_KEYS = frozenset({"id", "name", "parent", "ignore", "anomaly", "color", "colour"})
GROUP_KEYS = frozenset({"name", "parent", "color", "colour"})
FILE_KEYS = frozenset({"classes", "ignore", "groups", "levels"})


Unlabelled = Literal["ignored", "anomaly"]
"""Pixels of no class: without a label, or showing what no class describes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A class, or values without one."""

    name: str
    values: tuple[int, ...]
    parent: str | None
    colour: Colour | None
    no_class: Unlabelled | None = None


@dataclass(frozen=True, slots=True)
class ClassTable:
    """What the values and the colours of masks mean."""

    where: str
    """The file, for messages."""
    classes: tuple[str, ...]
    """Names in label order."""
    labels: Mapping[int, int | Unlabelled]
    """Label by the value of a mask."""
    entries: tuple[Entry, ...]
    levels: tuple[Level, ...]
    """The class tree above `classes`, see `raydet.config.SegmentationTask`."""

    @property
    def colours(self) -> tuple[Colour | None, ...]:
        """By label; None where the file has none."""
        known = {entry.name: entry.colour for entry in self.entries if entry.no_class is None}
        return tuple(known.get(name) for name in self.classes)

    def label_of_colour(self) -> dict[Colour, int | Unlabelled]:
        """Label by colour; empty if the file has no colours.

        Raises:
            DataError: one colour has two meanings.
        """
        found: dict[Colour, int | Unlabelled] = {}
        names: dict[Colour, str] = {}
        for entry in self.entries:
            if entry.colour is None:
                continue
            label = self.labels[entry.values[0]]
            if found.setdefault(entry.colour, label) != label:
                raise DataError(
                    f"{self.where}, class {entry.name!r}: colour {list(entry.colour)} is that of "
                    f"{names[entry.colour]!r}, too; masks of colours need a different one for each class"
                )
            names[entry.colour] = entry.name
        return found

    def in_order(self, classes: Sequence[str]) -> ClassTable:
        """The table with the labels of a list of classes, which may have more classes than the file.

        Raises:
            DataError: the file has a class that is not in the list.
        """
        if tuple(classes) == self.classes:
            return self
        if unknown := [name for name in self.classes if name not in classes]:
            raise DataError(
                f"{self.where}: expected a class of data.classes ({one_line(', '.join(classes))}), got {unknown[0]!r}; "
                "correct data.classes, or ignore the class in a file of your own"
            )
        place = [list(classes).index(name) for name in self.classes]
        labels = {
            value: place[label] if isinstance(label, int) else label for value, label in self.labels.items()
        }
        levels: tuple[Level, ...] = ()
        if self.levels and len(classes) == len(self.classes):
            first = self.levels[0]
            parents = [first.parents[self.classes.index(name)] for name in classes]
            levels = (first.model_copy(update={"parents": tuple(parents)}), *self.levels[1:])
        return replace(self, classes=tuple(classes), labels=labels, levels=levels)


def read_classes(path: Path) -> ClassTable:
    """The content of a `classes.yaml`.

    Raises:
        DataError: the file cannot be read, or an entry is wrong; the message names it.
    """
    where = str(path)
    tree = _mapping(read_yaml(path), where, FILE_KEYS)
    entries = [_class_entry(item, where) for item in _items(tree, "classes", where)]
    entries += [
        Entry(f"ignore {value}", (value,), None, None, "ignored")
        for value in _values(tree.get("ignore") or [], f"{where}, ignore")
    ]
    entries.sort(key=lambda entry: min(entry.values))
    kept = [entry for entry in entries if entry.no_class is None]
    classes = tuple(entry.name for entry in kept)
    if not 1 <= len(classes) <= MAX_CLASSES:
        raise DataError(
            f"{where}: expected 1 to {MAX_CLASSES} classes that are neither ignored nor anomalies, got {len(classes)}; "
            "list them under classes:, or ignore or merge some"
        )
    _check_once([entry.name for entry in entries], "class", where)
    groups = _groups(tree, where)
    parents = _chains(kept, groups, where)
    return ClassTable(
        where=where,
        classes=classes,
        labels=_labels(entries, classes, where),
        entries=tuple(entries),
        levels=_levels(parents, _level_names(tree, len(parents[0]), where)),
    )


def built_in_tables() -> dict[str, Path]:
    """The tables that come with raydet, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "class_tables").glob("*.yaml"))}


def read_yaml(path: Path) -> Any:
    """The value of a YAML file; anchors and aliases are refused, since a small file may stand for a huge tree.

    Raises:
        DataError: the file cannot be read, or is not valid YAML.
    """
    text = read_text(path, expected=EXPECTED)
    try:
        return yaml.load(text, _Loader)
    except RecursionError as error:
        raise DataError(f"{path}: expected {EXPECTED}, got one nested too deeply; write it again") from error
    except (yaml.YAMLError, ValueError) as error:
        raise DataError(
            f"{path}: expected {EXPECTED}, got a broken one ({one_line(error)}); correct it"
        ) from error


class _Loader(yaml.SafeLoader):
    """Refuses what YAML reads without a word: aliases, and keys that are given twice."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("aliases (*name) are not allowed")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [key.value for key, _ in node.value]
        if len(set(map(str, keys))) != len(keys):
            twice = next(key for key in keys if keys.count(key) > 1)
            raise yaml.YAMLError(
                f"line {node.start_mark.line + 1}: the key {one_line(twice)!r} is given twice"
            )
        return super().construct_mapping(node, deep)


def _mapping(value: object, where: str, known: frozenset[str]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(
            f"{where}: expected {', '.join(sorted(known))}, got {one_line(repr(value))}; correct it"
        )
    if unknown := [key for key in value if key not in known]:
        raise DataError(
            f"{where}: expected the keys {', '.join(sorted(known))}, got {one_line(repr(unknown[0]))}; correct it"
        )
    return value


def _items(tree: Mapping[str, Any], key: str, where: str) -> list[Any]:
    found = tree.get(key)
    if not isinstance(found, list) or not found:
        raise DataError(f"{where}: expected a list under {key}:, got {one_line(repr(found))}; write one")
    return found


def _class_entry(item: object, where: str) -> Entry:
    found = _mapping(item, f"{where}, classes", CLASS_KEYS)
    name = _name(found.get("name"), f"{where}, classes, id {one_line(repr(found.get('id')))}")
    here = f"{where}, class {name!r}"
    values = _values(found.get("id"), here)
    kinds: dict[str, Unlabelled] = {"ignore": "ignored", "anomaly": "anomaly"}
    for key in kinds:
        if not isinstance(found.get(key, False), bool):
            raise DataError(
                f"{here}: expected {key} true or false, got {one_line(repr(found[key]))}; correct it"
            )
    chosen = [kind for key, kind in kinds.items() if found.get(key, False)]
    if len(chosen) > 1:
        raise DataError(f"{here}: expected ignore or anomaly, got both; choose one of them")
    if not values:
        raise DataError(f"{here}: expected an id, or a list of them, got none; give one")
    parent = None if found.get("parent") is None else _name(found["parent"], f"{here}, parent")
    return Entry(name, values, parent, _colour(found, here), chosen[0] if chosen else None)


def _values(found: object, where: str) -> tuple[int, ...]:
    values = found if isinstance(found, list) else [found]
    for value in values:
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_VALUE:
            raise DataError(
                f"{where}: expected an id in 0..{MAX_VALUE}, got {one_line(repr(value))}; write the value of its pixels"
            )
    return tuple(values)


def _name(found: object, where: str) -> str:
    if found is not None and not isinstance(found, str):
        raise DataError(f"{where}: expected a name, got {one_line(repr(found))}; put it in quotes")
    return checked_name(found, where)


def _colour(found: Mapping[str, Any], where: str) -> Colour | None:
    colour = found.get("color", found.get("colour"))
    if colour is None:
        return None
    is_colour = isinstance(colour, list) and len(colour) == 3
    if not is_colour or not all(type(part) is int and 0 <= part <= 255 for part in colour):
        raise DataError(
            f"{where}: expected a color [red, green, blue] of 0..255, got {one_line(repr(colour))}; correct it"
        )
    red, green, blue = colour
    return red, green, blue


def _check_once(names: Sequence[str], what: str, where: str) -> None:
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise DataError(
            f"{where}, {what} {twice[0]!r}: expected different names, got it twice; rename one, or merge them: "
            "id: [1, 2]"
        )


def _labels(entries: Sequence[Entry], classes: Sequence[str], where: str) -> dict[int, int | Unlabelled]:
    labels: dict[int, int | Unlabelled] = {}
    owner: dict[int, Entry] = {}
    for entry in entries:
        for value in entry.values:
            other = owner.get(value)
            if (
                other is not None
                and "ignored" in (roles := {other.no_class, entry.no_class})
                and len(roles) == 2
            ):
                name = entry.name if other.no_class == "ignored" else other.name
                raise DataError(
                    f"{where}, class {name!r}: id {value} is ignored and a class, too; choose one of them"
                )
            if other is not None:
                raise DataError(
                    f"{where}, class {entry.name!r}: id {value} is that of {other.name!r}, too; a value has one class"
                )
            owner[value] = entry
            labels[value] = entry.no_class or list(classes).index(entry.name)
    return labels


def _groups(tree: Mapping[str, Any], where: str) -> dict[str, str | None]:
    """Parents by group, of the groups that the file lists."""
    parents: dict[str, str | None] = {}
    for item in _items(tree, "groups", where) if tree.get("groups") is not None else ():
        found = _mapping(item, f"{where}, groups", GROUP_KEYS)
        name = _name(found.get("name"), f"{where}, groups")
        parent = None if found.get("parent") is None else _name(found["parent"], f"{where}, group {name!r}")
        if name in parents:
            both = f"{parents[name] or 'no parent'} and {parent or 'no parent'}"
            raise DataError(
                f"{where}, group {name!r}: given twice, below {both}; a group has one place in the tree"
            )
        parents[name] = parent
    return parents


def _chains(kept: Sequence[Entry], groups: Mapping[str, str | None], where: str) -> list[tuple[str, ...]]:
    """The groups above each class, from its parent to the root; all of the same length."""
    for name in groups:
        _ancestors(name, groups, f"{where}, group {name!r}")
    chains = [_ancestors(entry.parent, groups, f"{where}, class {entry.name!r}") for entry in kept]
    used = {name for chain in chains for name in chain}
    if orphans := [name for name in groups if name not in used]:
        raise DataError(
            f"{where}, group {orphans[0]!r}: no class belongs to it; delete it, or name it as the parent of a class"
        )
    longest = max(range(len(chains)), key=lambda row: len(chains[row]))
    for entry, chain in zip(kept, chains, strict=True):
        if len(chain) != len(chains[longest]):
            plural = "s" if len(chains[longest]) > 1 else ""
            top = f"the group {chain[-1]!r}" if chain else "the class"
            raise DataError(
                f"{where}, class {entry.name!r}: expected {len(chains[longest])} group{plural} above it, as above "
                f"{kept[longest].name!r}, got {len(chain)}; give {top} a parent"
            )
    return chains


def _ancestors(parent: str | None, groups: Mapping[str, str | None], where: str) -> tuple[str, ...]:
    chain: list[str] = []
    while parent is not None:
        if parent in chain:
            raise DataError(
                f"{where}: the parents form a cycle, {' -> '.join([*chain[chain.index(parent) :], parent])}; "
                "correct one"
            )
        chain.append(parent)
        parent = groups.get(parent)
    return tuple(chain)


def _level_names(tree: Mapping[str, Any], depth: int, where: str) -> list[str]:
    found = tree.get("levels")
    if found is None:
        return [f"level_{number}" for number in range(1, depth + 1)]
    names = [_name(name, f"{where}, levels") for name in _items(tree, "levels", where)]
    if len(names) != depth or len(set(names)) != depth:
        raise DataError(
            f"{where}: expected {depth} different names under levels:, one for each level above the classes, got "
            f"{one_line(names)}; correct it"
        )
    for name in names:
        if not re.fullmatch(r"\w[\w-]*", name):
            raise DataError(
                f"{where}: expected words of letters, digits, _ and - under levels:, which become part of the names of "
                f"metrics and directories, got {one_line(name)}; rename it"
            )
    return names


def _levels(chains: Sequence[tuple[str, ...]], names: Sequence[str]) -> tuple[Level, ...]:
    """Groups are numbered in the order of their first class."""
    levels: list[Level] = []
    below = list(range(len(chains)))  # for every member of the level below, a class that is in it
    for height, name in enumerate(names):
        groups = list(dict.fromkeys(chain[height] for chain in chains))
        parents = tuple(groups.index(chains[row][height]) for row in below)
        levels.append(Level(name=name, groups=tuple(groups), parents=parents))
        below = [next(row for row, chain in enumerate(chains) if chain[height] == group) for group in groups]
    return tuple(levels)


def imported(path: Path) -> str:
    """The text of a `classes.yaml` from SegHiero's YAML: fine classes are the values 0, 1, ...; 255 is ignored.

    Raises:
        DataError: a range overlaps another one, leaves out an id, or does not fit the names.
    """
    where, tree = str(path), read_yaml(path)
    if isinstance(tree, dict) and isinstance(tree.get("classes"), dict):
        tree = tree["classes"]
    if not isinstance(tree, dict) or "fine_names" not in tree:
        raise DataError(
            f"{where}: expected classes with fine_names (SegHiero's YAML), got {one_line(repr(tree))}; check the file"
        )
    fine, coarse = _names_of(tree, "fine_names", where), _names_of(tree, "coarse_names", where)
    coarse_of = _parents(tree, "coarse_to_fine_map", coarse, fine, where)
    lines = ["classes:"]
    lines += [
        f"  - {{id: {number}, name: {json.dumps(name)}, parent: {json.dumps(coarse[coarse_of[number]])}}}"
        for number, name in enumerate(fine)
    ]
    lines.append("ignore: [255]")
    if "super_coarse_names" in tree:
        above = _names_of(tree, "super_coarse_names", where)
        super_of = _parents(tree, "super_coarse_to_coarse_map", above, coarse, where)
        lines.append("groups:")
        lines += [
            f"  - {{name: {json.dumps(name)}, parent: {json.dumps(above[super_of[number]])}}}"
            for number, name in enumerate(coarse)
        ]
        lines.append("levels: [coarse, super_coarse]")
    else:
        lines.append("levels: [coarse]")
    return "\n".join(lines) + "\n"


def _names_of(tree: Mapping[str, Any], key: str, where: str) -> list[str]:
    names = [_name(name, f"{where}, {key}") for name in _items(tree, key, where)]
    _check_once(names, key, where)
    return names


def _parents(
    tree: Mapping[str, Any], key: str, groups: Sequence[str], members: Sequence[str], where: str
) -> list[int]:
    """The group of each member, from one range of ids per group."""
    ranges = _items(tree, key, where)
    if len(ranges) != len(groups):
        raise DataError(
            f"{where}: expected {len(groups)} ranges in {key}, one for each group, got {len(ranges)}; correct it"
        )
    parents: dict[int, int] = {}
    for group, found in enumerate(ranges):
        here = f"{where}, {key} of {groups[group]!r}"
        is_range = isinstance(found, list) and len(found) in (1, 2) and all(type(end) is int for end in found)
        if not is_range or not 0 <= found[0] <= found[-1] < len(members):
            raise DataError(
                f"{here}: expected [id] or [first, last] in 0..{len(members) - 1}, got {one_line(repr(found))}; "
                "correct it"
            )
        for member in range(found[0], found[-1] + 1):
            if member in parents:
                raise DataError(
                    f"{here}: id {member} ({members[member]}) overlaps {groups[parents[member]]!r}; an id has one group"
                )
            parents[member] = group
    if missing := [member for member in range(len(members)) if member not in parents]:
        raise DataError(
            f"{where}, {key}: id {missing[0]} ({members[missing[0]]}) is missing from all ranges; add it to one"
        )
    return [parents[member] for member in range(len(members))]

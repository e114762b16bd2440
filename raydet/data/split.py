"""Which images train, validate, test and calibrate: a pure function of the source's names and the config."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import assert_never, get_args

import numpy as np

from raydet.config import FirstSplit, FrameSplit, GroupSplit, NamedSplit, Split, SplitName
from raydet.data.sources.base import Source
from raydet.errors import DataError

logger = logging.getLogger("raydet")


def split_indices(source: Source, split: Split) -> dict[SplitName, list[int]]:
    """Indices of the images of every part, all four of them; `test` and `calibration` may be empty.

    Raises:
        DataError: no image would train, no image would validate, a part that was asked for would be empty, or the id of
            an image does not say its part.
    """
    parts: dict[SplitName, list[int]] = {"train": [], "val": [], "test": [], "calibration": []}
    match split:
        case GroupSplit():
            parts |= _by_group(source.group_ids, split)
        case FrameSplit():
            # The same split as scikit-learn's `train_test_split`, with its order: published lists are made with it.
            num_val = math.ceil(split.val_fraction * len(source))
            order: list[int] = np.random.RandomState(split.seed).permutation(len(source)).tolist()
            parts |= {"train": order[num_val:], "val": order[:num_val]}
        case FirstSplit(num_train=num_train):
            if num_train > len(source):
                raise DataError(
                    f"data.split.num_train is {num_train}, the source has only {len(source)} images; lower it"
                )
            val = range(num_train) if split.overfit else range(num_train, len(source))
            parts |= {"train": list(range(num_train)), "val": list(val)}
        case NamedSplit():
            for index, part in enumerate(_named_parts(source.image_ids, split)):
                parts[part].append(index)
        case unreachable:
            assert_never(unreachable)
    optional: tuple[SplitName, ...] = ("test", "calibration")
    required: list[SplitName] = ["train", "val"]
    required += (name for name in optional if getattr(split, f"{name}_fraction", 0.0))
    if not all(parts[name] for name in required):
        counts = ", ".join(f"{len(indices)} {name}" for name, indices in parts.items())
        raise DataError(
            f"data.split ({split.kind}) must leave images in every part, got {counts} of {len(source)} images; "
            "change data.split or add images"
        )
    return parts


def groups_of(group_ids: Sequence[str], split: Split) -> list[str]:
    """The group of each image, which images that resemble one another share.

    The source's sequences. If it names none: blocks of consecutive images for a `GroupSplit`, single images otherwise.
    """
    if len(set(group_ids)) >= 2:
        return list(group_ids)
    if isinstance(split, GroupSplit):
        return [f"block {index * split.num_blocks // len(group_ids)}" for index in range(len(group_ids))]
    return [f"image {index}" for index in range(len(group_ids))]


def parts_of_ids(image_ids: Sequence[str]) -> set[SplitName]:
    """The parts of which every id says one, as `NamedSplit` has it by default; empty if some id says none."""
    try:
        return set(_named_parts(image_ids, NamedSplit()))
    except DataError:
        return set()


def _named_parts(image_ids: Sequence[str], split: NamedSplit) -> Iterator[SplitName]:
    """The part of each image."""
    parts: dict[str, SplitName] = {}
    for part in get_args(SplitName):
        parts |= dict.fromkeys(getattr(split, part), part)
    for image_id in image_ids:
        directories = [str(directory) for directory in PurePosixPath(image_id).parents]  # the longest first
        name = next((directory for directory in directories if directory in parts), None)
        if name is None:
            raise DataError(
                f"data.split (named): expected ids that begin with {', '.join(f'{name}/' for name in parts)}, got "
                f"{image_id!r}; name its part in data.split, or choose data.split.kind=group"
            )
        yield parts[name]


def _by_group(group_ids: Sequence[str], split: GroupSplit) -> dict[SplitName, list[int]]:
    """Assign whole groups to the parts, in random order, up to their fractions; each part stays in source order."""
    groups = groups_of(group_ids, split)
    if len(set(group_ids)) < 2:
        logger.info(
            "Using %d blocks of consecutive images as groups, because the source names no sequences",
            split.num_blocks,
        )
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    names = list(members)
    shuffled = [names[position] for position in np.random.RandomState(split.seed).permutation(len(names))]
    fractions: dict[SplitName, float] = {
        "val": split.val_fraction,
        "test": split.test_fraction,
        "calibration": split.calibration_fraction,
    }
    parts: dict[SplitName, list[int]] = {}
    for name, fraction in fractions.items():
        part: list[int] = []
        while shuffled and len(part) < fraction * len(groups):
            part += members[shuffled.pop(0)]
        parts[name] = sorted(part)
    return parts | {"train": sorted(index for name in shuffled for index in members[name])}

"""Which images train and which validate: a pure function of the source's names and the config."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import assert_never

import numpy as np

from raydet.config import FirstSplit, FrameSplit, GroupSplit
from raydet.data.sources.base import Source
from raydet.errors import DataError

logger = logging.getLogger("raydet")


def split_indices(source: Source, split: GroupSplit | FrameSplit | FirstSplit) -> tuple[list[int], list[int]]:
    """Indices of the training and of the validation images.

    Raises:
        DataError: one side would be empty.
    """
    match split:
        case GroupSplit():
            train, val = _by_group(source.group_ids, split)
        case FrameSplit():
            # The same split as scikit-learn's `train_test_split`, with its order: published lists are made with it.
            num_val = math.ceil(split.val_fraction * len(source))
            order: list[int] = np.random.RandomState(split.seed).permutation(len(source)).tolist()
            train, val = order[num_val:], order[:num_val]
        case FirstSplit(num_train=num_train):
            if num_train > len(source):
                raise DataError(
                    f"data.split.num_train is {num_train}, the source has only {len(source)} images; lower it"
                )
            train = list(range(num_train))
            val = list(train) if split.overfit else list(range(num_train, len(source)))
        case unreachable:
            assert_never(unreachable)
    if not train or not val:
        raise DataError(
            f"data.split ({split.kind}) must leave images on both sides, got {len(train)} for training and "
            f"{len(val)} for validation of {len(source)} images; change data.split or add images"
        )
    return train, val


def groups_of(group_ids: Sequence[str], split: GroupSplit | FrameSplit | FirstSplit) -> list[str]:
    """The group of each image, which images that resemble one another share.

    The source's sequences. If it names none: blocks of consecutive images for a `GroupSplit`, single images otherwise.
    """
    if len(set(group_ids)) >= 2:
        return list(group_ids)
    if isinstance(split, GroupSplit):
        return [f"block {index * split.num_blocks // len(group_ids)}" for index in range(len(group_ids))]
    return [f"image {index}" for index in range(len(group_ids))]


def _by_group(group_ids: Sequence[str], split: GroupSplit) -> tuple[list[int], list[int]]:
    """Assign whole groups to validation, in random order, up to the fraction; both sides stay in source order."""
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
    val: set[int] = set()
    for position in np.random.RandomState(split.seed).permutation(len(names)):
        if len(val) >= split.val_fraction * len(groups):
            break
        val.update(members[names[position]])
    return [i for i in range(len(groups)) if i not in val], sorted(val)

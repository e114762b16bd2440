"""The channels of a model that has one output per class and per group of a class tree.

Levels follow one another, the classes first. Within a level the channels are sorted so that the members of every group
are neighbours: what is done to a group is done to a slice. `order` says which output of the model each channel is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

from raydet.config.task import Level


@dataclass(frozen=True)
class Family:
    """A group and its members on the level below."""

    group: int
    """Its channel."""
    members: slice
    """Their channels."""


@dataclass(frozen=True)
class TreeChannels:
    """See the module."""

    levels: tuple[slice, ...]
    """Channels of every level, the classes first."""
    families: tuple[Family, ...]
    """Of all groups, the lowest level first."""
    paths: tuple[tuple[int, ...], ...]
    """Per level: the channel of every class, or of the group it belongs to."""
    order: tuple[int, ...]
    """The output of the model that a channel is."""

    @property
    def num_channels(self) -> int:
        """Classes and groups."""
        return len(self.order)

    @property
    def is_in_order(self) -> bool:
        """Channels are the outputs as they are."""
        return self.order == tuple(range(self.num_channels))


def tree_channels(num_classes: int, levels: Sequence[Level]) -> TreeChannels:
    """Channels of a tree.

    >>> level = Level(name="kind", groups=("a", "b"), parents=(1, 0, 1))
    >>> channels = tree_channels(3, [level])
    >>> channels.order, channels.paths
    ((1, 0, 2, 3, 4), ((1, 0, 2), (4, 3, 4)))
    >>> [(family.group, family.members) for family in channels.families]
    [(3, slice(0, 1, None)), (4, slice(1, 3, None))]
    """
    sizes = (num_classes, *(len(level.groups) for level in levels))
    ends = tuple(accumulate(sizes))
    slices = tuple(slice(end - size, end) for end, size in zip(ends, sizes, strict=True))
    parents = tuple(level.parents for level in levels)

    sorted_levels = [tuple(range(sizes[-1]))]  # by the group above, from the roots down
    for own_parents in reversed(parents):
        place = {group: i for i, group in enumerate(sorted_levels[0])}
        members = sorted(range(len(own_parents)), key=lambda i: (place[own_parents[i]], i))
        sorted_levels.insert(0, tuple(members))
    channel_of = [
        {index: own.start + i for i, index in enumerate(indices)}
        for own, indices in zip(slices, sorted_levels, strict=True)
    ]

    families = []
    for i, own_parents in enumerate(parents):
        for group in sorted_levels[i + 1]:
            members = [channel_of[i][j] for j, parent in enumerate(own_parents) if parent == group]
            families.append(Family(channel_of[i + 1][group], slice(min(members), max(members) + 1)))

    ancestors = [tuple(range(num_classes))]
    for own_parents in parents:
        ancestors.append(tuple(own_parents[i] for i in ancestors[-1]))
    return TreeChannels(
        levels=slices,
        families=tuple(families),
        paths=tuple(
            tuple(channels[i] for i in own) for channels, own in zip(channel_of, ancestors, strict=True)
        ),
        order=tuple(
            own.start + i for own, indices in zip(slices, sorted_levels, strict=True) for i in indices
        ),
    )

"""Bytes of all live tensors while code runs, by who made them, and the worst moment of every stretch of time.

Works on real and on fake tensors alike: what counts is the size of a storage and the time from its making to the end
of its last owner. Memory that an operation takes and gives back inside of itself is not seen.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True, slots=True)
class Tag:
    """Who made a tensor."""

    row: str
    """The ledger's row."""
    place: str
    """The part of the model that was running."""


@dataclass(slots=True)
class _Known:
    reference: weakref.ref[torch.UntypedStorage]
    """Kept, because its callback tells of the storage's end."""
    size_bytes: int
    tag: Tag | None
    """None: not counted."""


@dataclass(slots=True)
class Stretch:
    """The worst moment between two changes of place."""

    total_bytes: int = 0
    by_tag: dict[Tag, int] = field(default_factory=dict)


class LiveBytes(TorchDispatchMode):
    """Counts while it is entered.

    Args:
        weights: tensors that are counted elsewhere. Copies of them in another precision get the row `copies_row`.
        copies_row: see `weights`.
    """

    def __init__(self, weights: Iterable[Tensor], *, copies_row: str) -> None:
        super().__init__()
        self.stretches: dict[str, Stretch] = {}
        """In order of time."""
        self._stretch = ""
        self._tag = Tag("", "")
        self._copies_row = copies_row
        self._live: Counter[Tag] = Counter()
        self._total_bytes = 0
        self._known: dict[int, _Known] = {}
        for tensor in weights:
            self._add(tensor.untyped_storage(), None)
        self._weights = set(self._known)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tag = self._tag
        if func is torch.ops.aten._to_copy.default and id(args[0].untyped_storage()) in self._weights:
            tag = Tag(self._copies_row, tag.place)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage(), tag)
        return result

    def enter(self, stretch: str, tag: Tag) -> None:
        """From now on tensors are made by `tag`, and the worst moment is that of `stretch`."""
        self._stretch, self._tag = stretch, tag
        self._note_worst()

    def retag(self, tensor: Tensor, tag: Tag) -> None:
        """Count this tensor as made by `tag`."""
        known = self._known[id(tensor.untyped_storage())]
        if known.tag is not None:
            self._change(known.tag, -known.size_bytes)
            self._change(tag, known.size_bytes)
            known.tag = tag

    def live_bytes(self) -> dict[Tag, int]:
        """What is alive now."""
        return {tag: size_bytes for tag, size_bytes in self._live.items() if size_bytes}

    def _add(self, storage: torch.UntypedStorage, tag: Tag | None) -> None:
        key = id(storage)
        if key in self._known:
            return
        # The storage's Python object lives as long as the storage itself, so its id names it until the callback.
        reference = weakref.ref(storage, lambda _: self._remove(key))
        self._known[key] = _Known(reference, storage.nbytes(), tag)
        if tag is not None:
            self._change(tag, storage.nbytes())

    def _remove(self, key: int) -> None:
        known = self._known.pop(key)
        if known.tag is not None:
            self._change(known.tag, -known.size_bytes)

    def _change(self, tag: Tag, difference_bytes: int) -> None:
        self._live[tag] += difference_bytes
        self._total_bytes += difference_bytes
        if difference_bytes > 0:
            self._note_worst()

    def _note_worst(self) -> None:
        worst = self.stretches.setdefault(self._stretch, Stretch())
        if self._total_bytes > worst.total_bytes:
            worst.total_bytes, worst.by_tag = self._total_bytes, self.live_bytes()

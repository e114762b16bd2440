"""Bytes of all live tensors while code runs, by the scope that created them, and the peak of every interval.

Works on real and on fake tensors: a storage counts from its creation until its last owner is gone. Memory that an
operation allocates and frees internally is not seen.
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
    """The origin of a tensor: the ledger's row, and the scope (part of the model) that was running."""

    row: str
    scope: str


@dataclass(slots=True)
class _Storage:
    reference: weakref.ref[torch.UntypedStorage]
    """Kept alive for its callback at the end of the storage."""
    size_bytes: int
    tag: Tag | None
    """None if it is not counted."""


@dataclass(slots=True)
class Interval:
    """The peak between two changes of scope."""

    total_bytes: int = 0
    by_tag: dict[Tag, int] = field(default_factory=dict)


class LiveBytes(TorchDispatchMode):
    """Counts bytes while the context is active.

    `weights` are not counted; their copies in another precision get the row `copies_row`.
    """

    def __init__(self, weights: Iterable[Tensor], *, copies_row: str) -> None:
        super().__init__()
        self.intervals: dict[str, Interval] = {}
        """In chronological order."""
        self._interval = ""
        self._tag = Tag("", "")
        self._copies_row = copies_row
        self._live: Counter[Tag] = Counter()
        self._total_bytes = 0
        self._storages: dict[int, _Storage] = {}
        for tensor in weights:
            self._add(tensor.untyped_storage(), None)
        self._weights = set(self._storages)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        tag = self._tag
        if func is torch.ops.aten._to_copy.default and id(args[0].untyped_storage()) in self._weights:
            tag = Tag(self._copies_row, tag.scope)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage(), tag)
        return result

    def enter(self, interval: str, tag: Tag) -> None:
        """Attribute new tensors to `tag`, and peaks to `interval`, from now on."""
        self._interval, self._tag = interval, tag
        self._update_peak()

    def retag(self, tensor: Tensor, tag: Tag) -> None:
        """Attribute an existing tensor to `tag`."""
        entry = self._storages[id(tensor.untyped_storage())]
        if entry.tag is not None:
            self._change(entry.tag, -entry.size_bytes)
            self._change(tag, entry.size_bytes)
            entry.tag = tag

    def live_bytes(self) -> dict[Tag, int]:
        return {tag: size_bytes for tag, size_bytes in self._live.items() if size_bytes}

    def _add(self, storage: torch.UntypedStorage, tag: Tag | None) -> None:
        key = id(storage)
        if key in self._storages:
            return
        # The storage's Python object lives as long as the storage itself, so its id is unique until the callback.
        reference = weakref.ref(storage, lambda _: self._remove(key))
        self._storages[key] = _Storage(reference, storage.nbytes(), tag)
        if tag is not None:
            self._change(tag, storage.nbytes())

    def _remove(self, key: int) -> None:
        entry = self._storages.pop(key)
        if entry.tag is not None:
            self._change(entry.tag, -entry.size_bytes)

    def _change(self, tag: Tag, difference_bytes: int) -> None:
        self._live[tag] += difference_bytes
        self._total_bytes += difference_bytes
        if difference_bytes > 0:
            self._update_peak()

    def _update_peak(self) -> None:
        peak = self.intervals.setdefault(self._interval, Interval())
        if self._total_bytes > peak.total_bytes:
            peak.total_bytes, peak.by_tag = self._total_bytes, self.live_bytes()

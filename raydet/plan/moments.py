"""A training step as a line of moments: what is alive at the worst instant of every place, forward and backward.

The measured run has one block of a kind. While a stage is running or waiting for its backward pass, what the others
keep is alive too, and is added here; so are weights, gradients, optimizer state and gathered parameters, which
follow from counts.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raydet.parallel.layout import Layout
from raydet.plan.counts import Part
from raydet.plan.measure import GRADIENTS, WORKSPACE, Growing, Linear, Measurement

WEIGHTS = "weights"
STATE = "optimizer state"
COMMUNICATION = "communication buffers"

GATHERED_FORWARD = 3
"""Units of parameters that a sharded rank holds whole: the running one, its receive buffer, the next one's."""
GATHERED_BACKWARD = 5
"""As before, and gradients: those of the running unit, and the send buffer of the one before it."""


@dataclass(frozen=True, slots=True)
class Moment:
    """Live bytes by row."""

    name: str
    rows: Counter[str]


@dataclass(frozen=True, slots=True)
class Step:
    """One rank's step."""

    parts: tuple[Part, ...]
    measured: Measurement
    layout: Layout
    images: int
    """Of one micro-batch."""
    accumulation: int
    """Micro-batches per step."""
    state_copies: int
    update_copies: int

    def moments(self) -> Iterator[Moment]:
        """In order of time, but for accumulation: the last micro-batch is the worst."""
        places = list(self.measured.forward)
        for position, place in enumerate(places):
            rows = self._live(self.measured.forward[place], position, self.measured.at_end)
            rows += self._lasting()
            rows[GRADIENTS] = self._gradient_bytes(len(places), measured_bytes=0)
            rows[COMMUNICATION] = GATHERED_FORWARD * self._unit_bytes(place)
            yield Moment(f"forward pass, {place}", rows)
        for position, place in reversed(list(enumerate(places))):
            # Images have no backward pass, and a fusion that passes its input through has none of its own.
            if place in self.measured.backward:
                rows = self._live(self.measured.backward[place], position, self.measured.kept)
                rows += self._lasting()
                rows[GRADIENTS] = self._gradient_bytes(position, measured_bytes=rows[GRADIENTS])
                rows[COMMUNICATION] = GATHERED_BACKWARD * self._unit_bytes(place)
                yield Moment(f"backward pass, {place}", rows)
        local_bytes = self._local_bytes(self.parts)
        rows = self._lasting()
        rows[GRADIENTS] = local_bytes
        rows[WORKSPACE] = self.update_copies * local_bytes
        yield Moment("update of the weights", rows)

    def kept(self) -> dict[str, Linear]:
        """What the backward pass needs when the forward pass is over, by row."""
        rows: dict[str, Linear] = {}
        for tag, line in self.measured.kept.items():
            before = rows.get(tag.row, Linear(0, 0))
            rows[tag.row] = before.plus(line, times=self._count(tag.place))
        return rows

    def _live(self, one_block: Growing, position: int, others: Growing) -> Counter[str]:
        """Bytes of the short run, and of all blocks but one of the stages that are entered at `position`."""
        rows: Counter[str] = Counter()
        for tag, line in one_block.items():
            rows[tag.row] += line.at(self.images)
        entered = list(self.measured.forward)[: position + 1]
        for tag, line in others.items():
            if tag.place in entered:
                rows[tag.row] += (self._count(tag.place) - 1) * line.at(self.images)
        return rows

    def _lasting(self) -> Counter[str]:
        local_bytes = self._local_bytes(self.parts)
        return Counter({WEIGHTS: local_bytes, STATE: self.state_copies * local_bytes})

    def _gradient_bytes(self, position: int, *, measured_bytes: int) -> int:
        """Gradients alive when the backward pass runs the place with that number; beyond the last: before it.

        Args:
            measured_bytes: those of the short run.
        """
        # Accumulated over micro-batches, also where sharded: whole until the last one sends them. The buckets of
        # data-parallel ranks are gradients, and outlive the step.
        if self.accumulation > 1 or self.layout.kind == "ddp":
            return sum(part.whole_bytes for part in self.parts)
        done = [part for part in self.parts if self._position(part.place) > position]
        if self.layout.is_sharded:
            return self._local_bytes(done)
        return measured_bytes + sum((part.count - 1) * part.unit_bytes for part in done)

    def _position(self, part: str) -> int:
        """Where a part's gradients are done: a stage's own ones, those around its blocks, at its first place."""
        return next(
            number
            for number, place in enumerate(self.measured.forward)
            if part in (place, place.split(",")[0])
        )

    def _unit_bytes(self, place: str) -> int:
        """The largest of the units around a place, where units are gathered and dropped; 0 elsewhere."""
        if not self.layout.is_sharded:
            return 0
        names = [part.place for part in self.parts]
        number = next((names.index(name) for name in (place, place.split(",")[0]) if name in names), 0)
        return max(part.unit_bytes for part in self.parts[max(0, number - 1) : number + 2])

    def _local_bytes(self, parts: Sequence[Part]) -> int:
        """What this rank holds of some parts."""
        if not self.layout.is_sharded:
            return sum(part.whole_bytes for part in parts)
        return sum(part.shard_bytes(self.layout.shards) for part in parts)

    def _count(self, place: str) -> int:
        """Blocks of a stage; 1 elsewhere."""
        return next((part.count for part in self.parts if part.place == place), 1)

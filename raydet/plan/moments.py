"""The moments of a training step: the peak of every scope in the forward and the backward pass, and the update.

The measured run has one block of each group. The activations that the other blocks keep, and weights, gradients,
optimizer state and gathered parameters, which follow from counts, are added here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raydet.parallel.layout import Layout
from raydet.plan.counts import Part
from raydet.plan.measure import GRADIENTS, WORKSPACE, Linear, LinearBytes, Measurement

WEIGHTS = "weights"
STATE = "optimizer state"
COMMUNICATION = "communication buffers"

GATHERED_FORWARD = 3
"""Parameter units that a sharded rank holds unsharded: the running one, its receive buffer, the next one's."""
GATHERED_BACKWARD = 5
"""The same, and gradients: those of the running unit, and the send buffer of the previous one."""


@dataclass(frozen=True, slots=True)
class Moment:
    name: str
    rows: Counter[str]


@dataclass(frozen=True, slots=True)
class Step:
    """One rank's step: `accumulation` micro-batches of `images` images."""

    parts: tuple[Part, ...]
    measured: Measurement
    layout: Layout
    images: int
    accumulation: int
    state_copies: int
    update_copies: int

    def moments(self) -> Iterator[Moment]:
        """All moments of the last micro-batch, which is the worst, and the update, in chronological order."""
        scopes = list(self.measured.forward)
        for position, scope in enumerate(scopes):
            rows = self._live(self.measured.forward[scope], position, self.measured.at_end)
            rows += self._persistent()
            rows[GRADIENTS] = self._gradient_bytes(len(scopes), measured_bytes=0)
            rows[COMMUNICATION] = GATHERED_FORWARD * self._unit_bytes(scope)
            yield Moment(f"forward pass, {scope}", rows)
        for position, scope in reversed(list(enumerate(scopes))):
            # Images have no backward pass, nor has a fusion that returns its input.
            if scope in self.measured.backward:
                rows = self._live(self.measured.backward[scope], position, self.measured.kept)
                rows += self._persistent()
                rows[GRADIENTS] = self._gradient_bytes(position, measured_bytes=rows[GRADIENTS])
                rows[COMMUNICATION] = GATHERED_BACKWARD * self._unit_bytes(scope)
                yield Moment(f"backward pass, {scope}", rows)
        local_bytes = self._local_bytes(self.parts)
        rows = self._persistent()
        rows[GRADIENTS] = local_bytes
        rows[WORKSPACE] = self.update_copies * local_bytes
        yield Moment("update of the weights", rows)

    def kept(self) -> dict[str, Linear]:
        """Bytes kept for the backward pass after the forward pass, by row."""
        rows: dict[str, Linear] = {}
        for tag, line in self.measured.kept.items():
            rows[tag.row] = rows.get(tag.row, Linear(0, 0)).plus(line, times=self._count(tag.scope))
        return rows

    def _live(self, one_block: LinearBytes, position: int, others: LinearBytes) -> Counter[str]:
        """Bytes of the measured run, and of the other blocks of all scopes up to `position`."""
        rows: Counter[str] = Counter()
        for tag, line in one_block.items():
            rows[tag.row] += line.at(self.images)
        entered = list(self.measured.forward)[: position + 1]
        for tag, line in others.items():
            if tag.scope in entered:
                rows[tag.row] += (self._count(tag.scope) - 1) * line.at(self.images)
        return rows

    def _persistent(self) -> Counter[str]:
        local_bytes = self._local_bytes(self.parts)
        return Counter({WEIGHTS: local_bytes, STATE: self.state_copies * local_bytes})

    def _gradient_bytes(self, position: int, *, measured_bytes: int) -> int:
        """Gradients alive while the backward pass is at a position (number of scopes: not started).

        `measured_bytes` are those of the measured run.
        """
        # Accumulated gradients stay unsharded until the last micro-batch; the buckets of DDP outlive the step.
        if self.accumulation > 1 or self.layout.kind == "ddp":
            return sum(part.whole_bytes for part in self.parts)
        done = [part for part in self.parts if self._index(part.scope) > position]
        if self.layout.is_sharded:
            return self._local_bytes(done)
        return measured_bytes + sum((part.count - 1) * part.unit_bytes for part in done)

    def _index(self, part: str) -> int:
        """Position at which a part's gradients are complete; a stage's own layers are complete at its first scope."""
        scopes = enumerate(self.measured.forward)
        return next(index for index, scope in scopes if part in (scope, scope.split(",")[0]))

    def _unit_bytes(self, scope: str) -> int:
        """The largest of the units around a scope if parameters are sharded, otherwise 0."""
        if not self.layout.is_sharded:
            return 0
        names = [part.scope for part in self.parts]
        index = next((names.index(name) for name in (scope, scope.split(",")[0]) if name in names), 0)
        return max(part.unit_bytes for part in self.parts[max(0, index - 1) : index + 2])

    def _local_bytes(self, parts: Sequence[Part]) -> int:
        """Bytes of the parts on this rank."""
        if not self.layout.is_sharded:
            return sum(part.whole_bytes for part in parts)
        return sum(part.shard_bytes(self.layout.shards) for part in parts)

    def _count(self, scope: str) -> int:
        """Number of blocks of a scope; 1 for other scopes."""
        return next((part.count for part in self.parts if part.scope == scope), 1)

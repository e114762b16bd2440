"""What a run has come to: the rows of its epochs, and its results. Stored as plain JSON by the run and by studies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Self

Number = int | float | None


@dataclass(frozen=True, slots=True)
class EpochRow:
    """One completed epoch."""

    epoch: int
    """Counted from 1."""
    loss: float | None
    """Mean training loss; None if no step was used."""
    train_s: float
    images_per_s: float
    metrics: Mapping[str, Number] = field(default_factory=dict)
    """Everything measured by an evaluation, the load of the machine as `system/...`; empty without an evaluation."""
    eval_s: float | None = None

    def __getitem__(self, name: str) -> Number:
        """A column by its name; None if the epoch does not have it."""
        return self.metrics.get(name) if name not in _COLUMNS else getattr(self, name)

    def as_json(self) -> dict[str, Number]:
        """One flat row, as in metrics_per_epoch.csv."""
        row = {name: getattr(self, name) for name in _COLUMNS} | dict(self.metrics)
        return row if self.eval_s is None else row | {"eval_s": self.eval_s}

    @classmethod
    def parse(cls, row: Mapping[str, Any]) -> Self:
        """Read what `as_json` gave."""
        known: dict[str, Any] = {name: row.get(name) for name in (*_COLUMNS, "eval_s")}
        return cls(**known, metrics={name: value for name, value in row.items() if name not in known})


_COLUMNS = ("epoch", "loss", "train_s", "images_per_s")


@dataclass(frozen=True, slots=True)
class RunResults:
    """The contents of final_results.json, and what a study adds in its journal."""

    fingerprint: str
    """Of the config."""
    final: EpochRow
    """The last epoch."""
    best: EpochRow
    """The epoch with the best value of the deciding metric."""
    history: tuple[EpochRow, ...]
    parameters: int
    gflops: float
    """10^9 operations of a forward pass per image."""
    workers: int
    loop_s: float
    """Seconds in epochs and evaluations, interrupted attempts included."""
    checkpoint_s: float
    lost_s: float
    """Seconds between checkpoints and the restarts from them."""
    skipped_steps: tuple[int, ...]
    digest: str
    """See `raydet.data.digest`."""
    task: Mapping[str, Any] = field(default_factory=dict)
    """How the task was measured, e.g. its size bins."""
    data: Mapping[str, str] | None = None
    """Hashes of a converted set."""
    simulated: tuple[str, ...] = ()
    peak_memory_bytes: int | None = None
    """Of the worker that needed the most."""
    restarts: int | None = None
    wall_s: float | None = None
    """Seconds from the start of the workers to the end; None: unknown."""
    overhead_s: float | None = None
    """`wall_s` less `loop_s`."""

    def as_json(self) -> dict[str, Any]:
        """Plain JSON."""
        tree: dict[str, Any] = {item.name: getattr(self, item.name) for item in fields(self)}
        tree |= {name: tree[name].as_json() for name in ("final", "best")}
        tree["history"] = [row.as_json() for row in self.history]
        return tree | {name: list(tree[name]) for name in ("skipped_steps", "simulated")}

    @classmethod
    def parse(cls, tree: Mapping[str, Any]) -> Self:
        """Read what `as_json` gave, or the results of an older raydet."""
        known = {item.name for item in fields(cls)}
        values = {name: value for name, value in tree.items() if name in known}
        values["history"] = tuple(EpochRow.parse(row) for row in tree.get("history", ()))
        values |= {name: EpochRow.parse(tree[name]) for name in ("final", "best")}
        values |= {name: tuple(tree.get(name) or ()) for name in ("skipped_steps", "simulated")}
        if "size_bins" in tree:
            values["task"] = {"size_bins": tree["size_bins"]}
        return cls(**values)

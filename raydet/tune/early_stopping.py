"""Asynchronous successive halving (ASHA, Li et al. 2020, algorithm 2): runs that are far behind end early.

A run that has come to a rung goes on if it is among the best 1/`reduction` of those that have come to it so far, by
what they have written down: a driver that is lost forgets nothing. Each run is judged once per rung, when it comes to
it. A run that was stopped has saved where it stands: whoever needs its end continues it, and gets the result it would
have had.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from raydet.config import TrainConfig
from raydet.errors import StudyError
from raydet.resilience.stop_signal import StopKind, request_stop
from raydet.runs.epoch_watcher import EPOCHS, read_epochs
from raydet.tune.cells import Trial, trial_directory

DEFAULT_REDUCTION = 3
Rows = Sequence[Mapping[str, Any]]
"""A run's finished epochs, see metrics_per_epoch.csv."""


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """The rule."""

    grace_epochs: int
    """The first rung; each further one comes `reduction` times as late."""
    reduction: int = DEFAULT_REDUCTION

    def __post_init__(self) -> None:
        if self.grace_epochs < 1:
            raise StudyError(f"--asha wants at least 1 epoch, got {self.grace_epochs}")
        if self.reduction < 2:
            raise StudyError(f"--asha-reduction wants at least 2, got {self.reduction}")

    def rungs(self, train: TrainConfig) -> tuple[int, ...]:
        """Epochs after which a run may end, in order.

        Raises:
            StudyError: the first one comes too late, or no evaluation falls on it.

        >>> EarlyStopping(grace_epochs=2).rungs(TrainConfig(epochs=18, eval_every=2))
        (2, 6)
        """
        if self.grace_epochs >= train.epochs:
            raise StudyError(f"--asha {self.grace_epochs} wants runs of more epochs than {train.epochs}")
        if self.grace_epochs % train.eval_every:
            raise StudyError(
                f"--asha {self.grace_epochs} is no multiple of train.eval_every={train.eval_every}: no metric to go by"
            )
        rungs = []
        epoch = self.grace_epochs
        while epoch < train.epochs:
            rungs.append(epoch)
            epoch *= self.reduction
        return tuple(rungs)

    def bar(self, earlier: Sequence[float]) -> float | None:
        """The score that a run needs at a rung to go on; None: it goes on with any.

        Args:
            earlier: scores of the runs that have come to the rung before.
        """
        if not earlier:
            return None
        return float(np.percentile(earlier, 100 * (1 - 1 / self.reduction)))


def score_at(rows: Rows, epoch: int, metric: str) -> float | None:
    """The metric after an epoch, 0 where nothing was found; None: the run has not come so far."""
    for row in rows:
        if row["epoch"] == epoch:
            return float(row[metric] or 0.0)
    return None


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """Why a run was stopped."""

    epoch: int
    score: float
    bar: float
    """What it would have needed."""

    def __str__(self) -> str:
        return f"{self.score:.4f} after epoch {self.epoch}, {self.bar:.4f} was needed to go on"


class Screening:
    """Holds the runs of a phase against one another while they run.

    Args:
        trials: all of the phase.
        root: the study's directory.
        metric: larger is better.
    """

    def __init__(self, rule: EarlyStopping, trials: Sequence[Trial], *, root: Path, metric: str) -> None:
        self._rule = rule
        self._metric = metric
        self._rungs = rule.rungs(trials[0].experiment.train)
        self._directories = {trial.key: trial_directory(root, trial) for trial in trials}
        self._judged: dict[str, int] = {}
        self._read: dict[str, tuple[tuple[int, int], dict[int, float | None]]] = {}
        self.stops: dict[str, EarlyStop] = {}
        """By the trials' keys."""

    def begin(self, trial: Trial) -> None:
        """A trial begins, or goes on: it has passed the rungs behind it."""
        rows = read_epochs(self._directories[trial.key] / EPOCHS)
        self._judged[trial.key] = rows[-1]["epoch"] if rows else 0

    def judge(self, trial: Trial, rows: Rows) -> None:
        """A trial has finished its epochs `rows`: order it to stop where it is too far behind."""
        last = self._judged[trial.key]
        new = [epoch for epoch in self._rungs if last < epoch <= rows[-1]["epoch"]]
        for epoch in new:
            self._judged[trial.key] = epoch
            score, bar = score_at(rows, epoch, self._metric), self._rule.bar(self._scores(trial, epoch))
            assert score is not None, "rungs are evaluated epochs"
            if bar is not None and score < bar and trial.key not in self.stops:
                self.stops[trial.key] = EarlyStop(epoch, score, bar)
                request_stop(self._directories[trial.key], StopKind.EARLY, str(self.stops[trial.key]))

    def _scores(self, trial: Trial, epoch: int) -> list[float]:
        """Of the other trials that have come so far, by what they wrote down."""
        scores = (self._at_rungs(key).get(epoch) for key in self._directories if key != trial.key)
        return [score for score in scores if score is not None]

    def _at_rungs(self, key: str) -> dict[int, float | None]:
        """A trial's scores by rung; its file is read again only where it has changed."""
        path = self._directories[key] / EPOCHS
        try:
            stat = path.stat()
        except FileNotFoundError:
            return {}
        version = (stat.st_mtime_ns, stat.st_size)
        if key not in self._read or self._read[key][0] != version:
            rows = read_epochs(path)
            self._read[key] = version, {rung: score_at(rows, rung, self._metric) for rung in self._rungs}
        return self._read[key][1]

"""Asynchronous successive halving (ASHA, Li et al. 2020, algorithm 2): trials that are far behind stop early.

A trial that reaches a rung continues if its score is among the best 1/`reduction` of those that have reached the rung
so far. Scores are read from the trials' files, so a restarted driver loses nothing. Each trial is judged once per rung.
A stopped trial has saved a checkpoint: it can be resumed later, with the result of an uninterrupted run.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from raydet.config import Metric, TrainConfig
from raydet.errors import StudyError
from raydet.resilience.stop_signal import StopKind, request_stop
from raydet.runs.epoch_watcher import EPOCHS, read_epochs
from raydet.runs.results import EpochRow
from raydet.tune.cells import Trial, trial_directory

DEFAULT_REDUCTION = 3
Rows = Sequence[EpochRow]
"""The finished epochs of a run, see metrics_per_epoch.csv."""


@dataclass(frozen=True, slots=True)
class EarlyStopping:
    """The rule by which trials stop early."""

    grace_epochs: int
    """The first rung; each further rung is at `reduction` times as many epochs."""
    reduction: int = DEFAULT_REDUCTION

    def __post_init__(self) -> None:
        if self.grace_epochs < 1:
            raise StudyError(f"--asha must be at least 1 epoch, got {self.grace_epochs}")
        if self.reduction < 2:
            raise StudyError(f"--asha-reduction must be at least 2, got {self.reduction}")

    def rungs(self, train: TrainConfig) -> tuple[int, ...]:
        """Epochs after which a trial may be stopped, in order.

        Raises:
            StudyError: the first rung is not before the last epoch, or is not an evaluated epoch.

        >>> EarlyStopping(grace_epochs=2).rungs(TrainConfig(epochs=18, eval_every=2))
        (2, 6)
        """
        if self.grace_epochs >= train.epochs:
            raise StudyError(f"--asha {self.grace_epochs} must be less than train.epochs={train.epochs}")
        if self.grace_epochs % train.eval_every:
            raise StudyError(
                f"--asha must be a multiple of train.eval_every={train.eval_every}, got {self.grace_epochs}: other "
                "epochs are not evaluated"
            )
        rungs = [self.grace_epochs]
        while (epoch := rungs[-1] * self.reduction) < train.epochs:
            rungs.append(epoch)
        return tuple(rungs)

    def bar(self, earlier: Sequence[float]) -> float | None:
        """The score that a trial needs at a rung to continue; None: any.

        Args:
            earlier: scores of the trials that have reached the rung before, the larger the better.
        """
        return float(np.percentile(earlier, 100 * (1 - 1 / self.reduction))) if earlier else None


def utility_at(rows: Rows, epoch: int, metric: Metric) -> float | None:
    """How good a run was after an epoch, see `Metric.utility`; None: the run has not reached the epoch."""
    return next((metric.utility(row[metric.name]) for row in rows if row.epoch == epoch), None)


@dataclass(frozen=True, slots=True)
class EarlyStop:
    """Why a trial was stopped."""

    epoch: int
    score: float
    bar: float
    """The score that it needed to continue."""

    def __str__(self) -> str:
        return f"{self.score:.4f} after epoch {self.epoch}, {self.bar:.4f} was needed to continue"


class Screening:
    """Compares all trials of a phase while they run, and stops those that are far behind."""

    def __init__(self, rule: EarlyStopping, trials: Sequence[Trial], *, root: Path, metric: Metric) -> None:
        self._rule = rule
        self._metric = metric
        self._rungs = rule.rungs(trials[0].experiment.train)
        self._directories = {trial.key: trial_directory(root, trial) for trial in trials}
        self._judged: dict[str, int] = {}
        self._read: dict[str, tuple[tuple[int, int], dict[int, float | None]]] = {}
        self.stops: dict[str, EarlyStop] = {}
        """Stopped trials by key."""

    def begin(self, trial: Trial) -> None:
        """A trial starts or resumes; it is not judged again at the rungs that it has passed."""
        rows = read_epochs(self._directories[trial.key] / EPOCHS)
        self._judged[trial.key] = rows[-1].epoch if rows else 0

    def judge(self, trial: Trial, rows: Rows) -> None:
        """A trial has finished the epochs `rows`: request a stop if it is too far behind."""
        last = self._judged[trial.key]
        for epoch in (rung for rung in self._rungs if last < rung <= rows[-1].epoch):
            self._judged[trial.key] = epoch
            score = utility_at(rows, epoch, self._metric)
            assert score is not None, "the run has reached the rung"
            others = (self._at_rungs(key).get(epoch) for key in self._directories if key != trial.key)
            bar = self._rule.bar([other for other in others if other is not None and other > -math.inf])
            if bar is not None and -math.inf < score < bar and trial.key not in self.stops:
                sign = 1.0 if self._metric.higher_is_better else -1.0
                self.stops[trial.key] = EarlyStop(epoch, sign * score, sign * bar)
                request_stop(self._directories[trial.key], StopKind.EARLY, str(self.stops[trial.key]))

    def _at_rungs(self, key: str) -> dict[int, float | None]:
        """The scores of a trial by rung; its file is read again only if it has changed."""
        path = self._directories[key] / EPOCHS
        try:
            stat = path.stat()
        except FileNotFoundError:
            return {}
        version = (stat.st_mtime_ns, stat.st_size)
        if key not in self._read or self._read[key][0] != version:
            rows = read_epochs(path)
            self._read[key] = version, {rung: utility_at(rows, rung, self._metric) for rung in self._rungs}
        return self._read[key][1]

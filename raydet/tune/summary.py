"""summary_all_experiments.csv: one row per trial of a study, rewritten as trials end."""

from __future__ import annotations

import csv
import io
import time
from collections.abc import Iterable
from pathlib import Path

from raydet.metrics.names import metrics_of
from raydet.runs.run_dir import write_atomically
from raydet.tune.study import Study
from raydet.tune.trial_status import TrialRecord

SUMMARY = "summary_all_experiments.csv"
PAUSE = 20
"""Minimum time between writes, relative to the time of the last write: rewriting the file for every trial would take
longer and longer.
"""


def summary_row(study: Study, record: TrialRecord) -> dict[str, object]:
    """Factors, status, metrics and cost of a trial."""
    trial, results, usage = record.trial, record.results, record.usage
    row: dict[str, object] = {"experiment": trial.name, "phase": trial.phase, "seed": trial.seed}
    row |= {factor.path.split(".")[-1]: trial.cell.values.get(factor.path) for factor in study.factors}
    row |= {"status": record.status}
    row |= {metric.name: results and results.final[metric.name] for metric in metrics_of(study.base.task)}
    costs = ("parameters", "wall_s", "loop_s", "overhead_s", "lost_s")
    row |= {name: results and getattr(results, name) for name in costs}
    row |= {name: usage and round(getattr(usage, name), 6) for name in ("gpu_hours", "cpu_worker_hours")}
    return row | {"reason": record.reason}


class Summary:
    """The summary file, with its rows in the order of the trials."""

    def __init__(self, study: Study, directory: Path) -> None:
        self._study = study
        self._path = directory / SUMMARY
        self._head = ""
        self._lines: dict[str, str] = {}
        """CSV rows by the trials' keys."""
        self._not_before = 0.0

    def add(self, records: Iterable[TrialRecord]) -> None:
        """Add or update the rows of some trials, without writing the file."""
        for record in records:
            text, row = io.StringIO(), summary_row(self._study, record)
            writer = csv.DictWriter(text, row.keys())
            writer.writeheader()
            self._head = text.getvalue()
            writer.writerow(row)
            self._lines[record.trial.key] = text.getvalue()[len(self._head) :]

    def ended(self, record: TrialRecord) -> None:
        """Update the row of a trial that has ended, and write the file unless it was written just before."""
        self.add([record])
        if time.monotonic() >= self._not_before:
            self.write()

    def write(self) -> None:
        """Write the file."""
        began = time.monotonic()
        write_atomically(self._path, self._head + "".join(self._lines.values()))
        now = time.monotonic()
        self._not_before = now + PAUSE * (now - began)

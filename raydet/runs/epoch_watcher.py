"""Follow a run from another process, through the files that its main worker writes."""

from __future__ import annotations

import csv
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path

from raydet.runs.results import EpochRow

EPOCHS = "metrics_per_epoch.csv"
POLL_INTERVAL_S = 1.0

logger = logging.getLogger("raydet")


class EpochWatcher:
    """Calls `on_epochs` with all rows of metrics_per_epoch.csv whenever there are new ones, from a thread."""

    def __init__(self, run_dir: Path, on_epochs: Callable[[Sequence[EpochRow]], None]) -> None:
        self._path = run_dir / EPOCHS
        self._on_epochs = on_epochs
        self._num_rows = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="raydet-epochs", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop the thread; no call is in progress when this returns."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(POLL_INTERVAL_S):
            rows = read_epochs(self._path)
            if len(rows) == self._num_rows:
                continue
            try:
                self._on_epochs(rows)
                self._num_rows = len(rows)
            except Exception:  # a tracker that is down must not stop a run; its end logs all epochs again
                logger.warning("could not log the newest epochs; trying again", exc_info=True)


def read_epochs(path: Path) -> list[EpochRow]:
    """Rows of a metrics_per_epoch.csv; no rows if there is no file."""
    try:
        with path.open(newline="") as file:
            rows = [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]
            return [EpochRow.parse(row) for row in rows]
    except FileNotFoundError:
        return []


def _number(text: str) -> int | float | None:
    if text == "":
        return None
    value = float(text)
    return int(value) if value.is_integer() and "." not in text else value

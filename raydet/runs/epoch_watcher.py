"""Follow a run from another process, through the files that its main worker writes."""

from __future__ import annotations

import csv
import logging
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

EPOCHS = "metrics_per_epoch.csv"
POLL_INTERVAL_S = 1.0

logger = logging.getLogger("raydet")

OnEpochs = Callable[[Sequence[dict[str, Any]]], None]


class EpochWatcher:
    """Calls `on_epochs` with the rows of metrics_per_epoch.csv whenever there are new ones, from a thread."""

    def __init__(self, run_dir: Path, on_epochs: OnEpochs) -> None:
        self._path = run_dir / EPOCHS
        self._on_epochs = on_epochs
        self._seen = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="raydet-epochs", daemon=True)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Follow no longer; no call is under way when this returns."""
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(POLL_INTERVAL_S):
            rows = read_epochs(self._path)
            if len(rows) == self._seen:
                continue
            try:
                self._on_epochs(rows)
                self._seen = len(rows)
            except Exception:  # a tracker that is down must not stop a run; the end of the run logs all again
                logger.warning("could not log the newest epochs; trying again", exc_info=True)


def read_epochs(path: Path) -> list[dict[str, Any]]:
    """Rows of a metrics_per_epoch.csv with numbers where there are numbers."""
    try:
        with path.open(newline="") as file:
            return [{key: _number(value) for key, value in row.items()} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def _number(text: str) -> int | float | None:
    if text == "":
        return None
    value = float(text)
    return int(value) if value.is_integer() and "." not in text else value

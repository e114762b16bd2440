"""A queue of updates for the tracker: an unreachable server delays them, but neither loses them nor holds up trials."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable

from raydet.errors import TrackerUnavailableError

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0

logger = logging.getLogger("raydet")

Call = Callable[[], object]


class TrackingQueue:
    """Calls of the tracker, made one after the other in a thread.

    While the tracker is unreachable, calls stay queued and are retried after 1, 2, 4, ... 30 s. A call that the tracker
    refuses is dropped with a warning.

    Args:
        say: takes a line when the tracker becomes unreachable, becomes reachable again, or refuses a call.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._calls: dict[str, Call] = {}
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._ends_at: float | None = None
        self._last_said: str | None = None
        self._thread = threading.Thread(target=self._work, name="raydet-tracking", daemon=True)
        self._thread.start()

    def put(self, call: Call, *, replaces: str | None = None) -> None:
        """Queue a call.

        Args:
            call: may be repeated after a `TrackerUnavailableError`.
            replaces: the call's subject; it replaces a queued call of the same subject, so that the queue stays short
                while the tracker is unreachable.
        """
        with self._changed:
            self._calls[replaces or f"call {next(self._numbers)}"] = call
            self._changed.notify()

    def close(self, patience_s: float) -> int:
        """Make the remaining calls and end the thread.

        Args:
            patience_s: how long to wait for an unreachable tracker.

        Returns:
            How many calls were not made.
        """
        with self._changed:
            self._ends_at = time.monotonic() + patience_s
            self._changed.notify()
        self._thread.join()
        return len(self._calls)

    def _work(self) -> None:
        wait_s = FIRST_WAIT_S
        while (queued := self._next()) is not None:
            name, call = queued
            try:
                call()
            except TrackerUnavailableError as error:
                self._say_once(f"MLflow unreachable; updates queued ({error})", "unreachable")
                if not self._wait(wait_s):
                    return
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                continue
            except Exception as error:
                logger.warning("the tracker failed", exc_info=True)
                self._say_once(f"tracking failed ({error}); nothing is lost, the same command tries again")
            else:
                if self._last_said == "unreachable":
                    self._say_once("MLflow reachable again")
            wait_s = FIRST_WAIT_S
            with self._changed:
                if self._calls[name] is call:  # else it has been replaced meanwhile
                    del self._calls[name]

    def _next(self) -> tuple[str, Call] | None:
        """The oldest call; None once the queue is closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._ends_at is not None)
            return next(iter(self._calls.items()), None)

    def _wait(self, wait_s: float) -> bool:
        """Wait before a retry; False once the patience of `close` is over."""
        with self._changed:
            if self._ends_at is None:
                self._changed.wait_for(lambda: self._ends_at is not None, timeout=wait_s)
                return True
        time.sleep(max(0.0, min(wait_s, FIRST_WAIT_S, self._ends_at - time.monotonic())))
        return time.monotonic() < self._ends_at

    def _say_once(self, text: str, kind: str | None = None) -> None:
        """Report a line, unless the last one was of the same kind."""
        kind = kind or text
        if kind != self._last_said:
            self._last_said = kind
            logger.warning(text)
            self._say(text)

"""What the tracker is to hear, kept until it has heard it: a server that is away for a while costs nothing."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Callable

from raydet.errors import TrackerAwayError

FIRST_WAIT_S, LONGEST_WAIT_S = 1.0, 30.0

logger = logging.getLogger("raydet")

Call = Callable[[], object]


class Outbox:
    """Calls of the tracker, made one after the other by a thread of their own.

    While the tracker is away, what there is to say waits, and is tried again after 1, 2, 4, ... 30 s. What the tracker
    refuses is left out with a warning.

    Args:
        say: told in one line when the tracker goes away, comes back or refuses.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._calls: dict[str, Call] = {}
        self._numbers = itertools.count()
        self._changed = threading.Condition()
        self._ends_at: float | None = None
        self._said: str | None = None
        self._thread = threading.Thread(target=self._work, name="raydet-tracking", daemon=True)
        self._thread.start()

    def put(self, call: Call, *, replaces: str | None = None) -> None:
        """Make this call after those that wait.

        Args:
            call: may be made again after `TrackerAwayError`.
            replaces: what it is about; an earlier call about the same that still waits is not made, so that a long
                absence fills no memory.
        """
        with self._changed:
            self._calls[replaces or f"call {next(self._numbers)}"] = call
            self._changed.notify()

    def close(self, patience_s: float) -> int:
        """Take no more; return when all is said.

        Args:
            patience_s: how long to wait for a tracker that is away.

        Returns:
            How many calls were never made.
        """
        with self._changed:
            self._ends_at = time.monotonic() + patience_s
            self._changed.notify()
        self._thread.join()
        return len(self._calls)

    def _work(self) -> None:
        wait_s = FIRST_WAIT_S
        while (waiting := self._next()) is not None:
            name, call = waiting
            try:
                call()
            except TrackerAwayError as error:
                self._tell(f"the tracker is away, what there is to say waits ({error})", "away")
                if not self._is_patient(wait_s):
                    return
                wait_s = min(2 * wait_s, LONGEST_WAIT_S)
                continue
            except Exception as error:
                logger.warning("the tracker failed", exc_info=True)
                self._tell(f"tracking failed ({error}); nothing is lost, the same command tries again")
            else:
                if self._said == "away":
                    self._tell("the tracker is back")
            wait_s = FIRST_WAIT_S
            with self._changed:
                if self._calls[name] is call:  # else there is news already
                    del self._calls[name]

    def _next(self) -> tuple[str, Call] | None:
        """The oldest call; None when there will be none any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._calls or self._ends_at is not None)
            return next(iter(self._calls.items()), None)

    def _is_patient(self, wait_s: float) -> bool:
        """Wait; whether to go on after that."""
        with self._changed:
            if self._ends_at is None:
                self._changed.wait_for(lambda: self._ends_at is not None, timeout=wait_s)
                return True
        time.sleep(max(0.0, min(wait_s, FIRST_WAIT_S, self._ends_at - time.monotonic())))
        return time.monotonic() < self._ends_at

    def _tell(self, text: str, what: str | None = None) -> None:
        """Once, however often it comes in a row."""
        what = what or text
        if what != self._said:
            self._said = what
            logger.warning(text)
            self._say(text)

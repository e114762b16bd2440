"""Keep the output of Ray, MLflow and their native code out of the terminal: it goes to a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

LOG_WIDTH = 140
"""Columns if the output is a file or a job's log."""

_redirected: list[int] = []
"""Descriptors of the terminal's standard error while it is redirected."""


def write_to_terminal(text: str) -> None:
    """Write a line to the terminal's standard error, past any redirection: for a process that is about to exit."""
    os.write(_redirected[-1] if _redirected else 2, f"{text}\n".encode())


@contextmanager
def exclusive_terminal(third_party_log: Path) -> Iterator[Console]:
    """While the block runs, only the yielded console reaches the terminal; all else is appended to `third_party_log`.

    File descriptors are redirected, so this covers native code and child processes too.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved_out, saved_err = os.dup(1), os.dup(2)
    _redirected.append(saved_err)
    with third_party_log.open("ab") as file, os.fdopen(os.dup(saved_out), "w") as terminal:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
        try:
            yield Console(file=terminal, width=None if terminal.isatty() else LOG_WIDTH)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os.dup2(saved_out, 1)
            os.dup2(saved_err, 2)
            _redirected.pop()
            os.close(saved_out)
            os.close(saved_err)

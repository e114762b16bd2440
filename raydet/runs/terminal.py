"""Keep the terminal for ourselves: what Ray, MLflow and their native parts print goes to a file."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

LOG_WIDTH = 140
"""Columns where the output is a file or a job's log, which have none of their own."""


_redirected: list[int] = []
"""The terminal's error output while it is redirected."""


def last_words(text: str) -> None:
    """To the terminal's error output, past any redirection: for a process that is about to end itself."""
    os.write(_redirected[-1] if _redirected else 2, f"{text}\n".encode())


@contextmanager
def own_terminal(noise: Path) -> Iterator[Console]:
    """While the block runs, the yielded console alone reaches standard output; all else is appended to `noise`.

    The redirection is one of file descriptors, so it holds for native code and for child processes too.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved_out, saved_err = os.dup(1), os.dup(2)
    _redirected.append(saved_err)
    with noise.open("ab") as file, os.fdopen(os.dup(saved_out), "w") as terminal:
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

"""Deterministic kernels: the same bits every time.

On a CPU, threads may add to the same element in any order: an accumulating indexed put (the backward pass of
`rows[index]`) uses atomic additions by default. On CPUs training always asks for the deterministic kernel, and uses
other operations (`F.embedding`) where the serial put would be slow. On a GPU deterministic kernels may be much slower,
and some operations have none: there `train.exact` decides.

PyTorch's reproducibility notes, https://docs.pytorch.org/docs/stable/notes/randomness.html.
"""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import torch
from torch.utils import deterministic

_NOT_DETERMINISTIC = r"(\S+) does not have a deterministic implementation"

logger = logging.getLogger("raydet")


@contextmanager
def deterministic_kernels(device: torch.device, *, exact: bool) -> Iterator[None]:
    """While the block runs, operations use their deterministic kernels: on a CPU always, on a GPU if `exact`.

    Operations that have none are named in the log; with them, two runs may differ in the last bits.
    """
    if device.type != "cpu" and not exact:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # before the first use of cuBLAS
    was_enabled = torch.are_deterministic_algorithms_enabled()
    was_only_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    fills_memory = deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Training never reads uninitialized memory.
    deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False
    try:
        with _logging_nondeterministic_operations():
            yield
    finally:
        torch.use_deterministic_algorithms(was_enabled, warn_only=was_only_warning)
        deterministic.fill_uninitialized_memory = fills_memory  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def _logging_nondeterministic_operations() -> Iterator[None]:
    named: set[str] = set()
    show_others = warnings.showwarning

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        found = re.search(_NOT_DETERMINISTIC, str(message))
        if found is None:
            show_others(message, category, filename, lineno, file, line)
        elif found.group(1) not in named:
            named.add(found.group(1))
            logger.warning(
                "%s has no deterministic kernel on this device: two runs may differ in the last bits",
                found.group(1),
            )

    with warnings.catch_warnings():
        warnings.filterwarnings("default", message=f".*{_NOT_DETERMINISTIC}")
        warnings.showwarning = show
        yield

"""Kernels that give the same bits every time, on a GPU too."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

import torch

CUBLAS_WORKSPACE = ":4096:8"
"""What cuBLAS wants to be told before it is first used: buffers of a fixed size."""

_NOT_DETERMINISTIC = r"(\S+) does not have a deterministic implementation"

logger = logging.getLogger("raydet")


@contextmanager
def deterministic_kernels(*, enabled: bool) -> Iterator[None]:
    """While the block runs, operations take their deterministic kernels, which may be slower.

    Operations that have none are named in the log; where there are such, two runs may differ in the last bits.
    """
    if not enabled:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", CUBLAS_WORKSPACE)
    was_enabled = torch.are_deterministic_algorithms_enabled()
    was_only_warning = torch.is_deterministic_algorithms_warn_only_enabled()
    benchmark = torch.backends.cudnn.benchmark
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.benchmark = False
    try:
        with _noting_operations_without():
            yield
    finally:
        torch.use_deterministic_algorithms(was_enabled, warn_only=was_only_warning)
        torch.backends.cudnn.benchmark = benchmark


@contextmanager
def _noting_operations_without() -> Iterator[None]:
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
            logger.warning("train.exact: %s has no deterministic kernel on this device", found.group(1))

    with warnings.catch_warnings():
        warnings.filterwarnings("default", message=f".*{_NOT_DETERMINISTIC}")
        warnings.showwarning = show
        yield

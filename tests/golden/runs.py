"""Runs whose every number is kept beside this file, as text, and the machine that the numbers belong to."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from raydet.config import Experiment, apply_overrides
from raydet.cpu import cpu_name
from raydet.recipes import recipe

SMALL_CANVAS: dict[str, Any] = {
    "data.source.num_sequences": 12,
    "data.source.frames_per_sequence": 2,
    "data.source.size_hw": [64, 96],
    "data.canvas_hw": [64, 96],
    "train.global_batch": 2,
    "train.epochs": 3,
    "train.eval_every": 3,
}
"""Three epochs of seven steps or more."""
FUSIONS = ("add", "concat", "late_concat", "cross_attention", "cmx", "gaff", "cssa", "identity")
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "demo": ("demo", {}),
    "rgbte_mit_b0": ("rgbte_mit_b0", SMALL_CANVAS | {"train.eval_every": 1}),
    **{name: ("demo", {**SMALL_CANVAS, "model.fusion": {"kind": name}}) for name in FUSIONS},
    "gaff_guided": (
        "demo",
        {
            **SMALL_CANVAS,
            "model.fusion": {"kind": "gaff", "gated": True, "guide_intra": True, "guide_inter": True},
        },
    ),
}
"""Recipe and overrides by name: one run per fusion family, and the two recipes that the rest is built on."""
TIMED = ("time", "saved_at", "usage", "gpu_hours", "cpu_worker_hours", "images_per_s", "peak_memory_bytes")
"""Fields that differ from one run to the next, beside those in seconds (`..._s`) and of the system (`system/...`)."""


def experiment_of(case: str) -> Experiment:
    """The experiment of a case."""
    name, overrides = CASES[case]
    return apply_overrides(recipe(name), overrides)


def machine() -> dict[str, str]:
    """What the last bit of a sum depends on, beside the number of threads: all runs here have one."""
    return {
        "torch": torch.__version__,
        "cpu": cpu_name(),
        "capability": torch.backends.cpu.get_cpu_capability(),
    }


def without_times(value: Any) -> Any:
    """JSON data without what differs from one run to the next."""
    if isinstance(value, Mapping):
        return {name: without_times(entry) for name, entry in value.items() if not _is_timed(name)}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


def _is_timed(name: str) -> bool:
    return name in TIMED or name.endswith("_s") or name.startswith("system/")


def table(path: Path) -> str:
    """A CSV file without its times, as text."""
    with path.open(newline="") as file:
        rows = [without_times(row) for row in csv.DictReader(file)]
    lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
    return "\n".join(lines) + "\n"


def journal(path: Path) -> str:
    """A study's journal without times; `tracked` is left out, as its place depends on them."""
    events = [without_times(json.loads(line)) for line in path.read_text().splitlines()]
    return "".join(json.dumps(event) + "\n" for event in events if event["event"] != "tracked")


def blocks(checkpoint: Path) -> str:
    """The manifest of a checkpoint; of `state.json` what holds no time."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    state = manifest["files"].pop("state.json")
    assert state
    del manifest["sha256"]
    manifest["state"] = without_times(json.loads((checkpoint / "state.json").read_text()))
    return json.dumps(manifest, indent=2) + "\n"

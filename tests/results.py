"""Results of runs that never were, for tests of what is made of results."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from raydet.checkpoint.manifest import MANIFEST, STATE, FileInfo, Manifest, write_durably
from raydet.checkpoint.retention import checkpoint_name
from raydet.runs.results import RunResults


def results_with(final: dict[str, float | None], **fields: Any) -> RunResults:
    """Results whose only epoch has these metrics."""
    row = {"epoch": 1, "loss": 1.0, "train_s": 1.0, "images_per_s": 10.0, **final}
    tree = {
        "fingerprint": "0" * 12,
        "final": row,
        "best": row,
        "history": [row],
        "parameters": 1000,
        "gflops": 1.5,
        "workers": 1,
        "loop_s": 1.0,
        "checkpoint_s": 0.0,
        "lost_s": 0.0,
        "skipped_steps": [],
        "digest": "",
    }
    return RunResults.parse(tree | fields)


def write_checkpoint(run_dir: Path, epoch: int, score: float | None) -> Path:
    """Write a small intact checkpoint of one tensor; returns its directory."""
    path = run_dir / "checkpoints" / checkpoint_name(epoch)
    path.mkdir(parents=True)
    save_file({"weight": np.full(3, epoch, dtype=np.float32)}, path / "shard-00001.safetensors")
    content = (path / "shard-00001.safetensors").read_bytes()
    shard = FileInfo(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
    files = {"shard-00001.safetensors": shard, STATE: write_durably(path / STATE, "{}")}
    write_durably(path / MANIFEST, Manifest(1, "AdamW", score, files).as_text())
    return path

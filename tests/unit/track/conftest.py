"""One sqlite store for all tests, as creating it takes seconds; each test uses its own experiment."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from raydet.checkpoint.manifest import MANIFEST, STATE, FileInfo, Manifest, write_durably
from raydet.checkpoint.retention import checkpoint_name, intact_checkpoints


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """URI of the store."""
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def checkpoints(tmp_path: Path) -> Callable[[Mapping[int, float | None]], list[Path]]:
    """Writes small intact checkpoints of a run, by epoch and score; returns all of the run, newest first."""

    def write(scores: Mapping[int, float | None]) -> list[Path]:
        for epoch, score in scores.items():
            path = tmp_path / "run" / "checkpoints" / checkpoint_name(epoch)
            path.mkdir(parents=True)
            save_file({"weight": np.full(3, epoch, dtype=np.float32)}, path / "shard-00001.safetensors")
            content = (path / "shard-00001.safetensors").read_bytes()
            shard = FileInfo(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content))
            files = {"shard-00001.safetensors": shard, STATE: write_durably(path / STATE, "{}")}
            write_durably(path / MANIFEST, Manifest(1, "AdamW", score, files).as_text())
        return list(intact_checkpoints(tmp_path / "run"))

    return write

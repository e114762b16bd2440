"""Results of runs that never were, for tests of what is made of results."""

from __future__ import annotations

from typing import Any

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

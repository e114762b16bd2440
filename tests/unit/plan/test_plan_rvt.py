"""The plan for a recurrent backbone and the head of YOLOX, against real steps."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from raydet.config import Experiment, apply_overrides
from raydet.models.build import describe_parameters
from raydet.plan.counts import PARAMETER_BYTES, parts_of
from raydet.plan.ledger import ledger
from tests.unit.plan.real import experiment, peak_bytes


def rvt_run(overrides: dict[str, Any]) -> Experiment:
    return apply_overrides(
        experiment("b0"),
        {
            "model.backbone": {"kind": "rvt", "variant": "nano", "patch": 2},
            "model.rgb_modalities": ["event"],
            "model.fusion": {"kind": "identity"},
            "model.elsewhere": {"kind": "identity"},
            "model.neck": {"kind": "pafpn", "levels": 4},
            "model.head": {"kind": "yolox"},
            "data.event_channels": 20,
            "data.canvas_hw": [128, 192],
            "train.global_batch": 2,
            **overrides,
        },
    )


@pytest.mark.parametrize("mode", ["none", "block"])
def test_the_peak_is_the_real_one(mode: str) -> None:
    run = rvt_run({"train.activation_checkpointing": mode})
    planned = ledger(run, world_size=1, strategy="single", micro_batch=2, num_objects=3, device_type="cpu")
    assert planned.allocated_bytes == pytest.approx(peak_bytes(run, 2), rel=0.03)
    total = describe_parameters(run)["total"]
    assert sum(part.whole_bytes for part in parts_of(run)) == PARAMETER_BYTES * total


def test_a_clip_has_all_of_its_frames() -> None:
    single = rvt_run({"train.global_batch": 6})
    clips = rvt_run({"data.sampling": {"kind": "clips", "frames": 3}})
    of_images = ledger(single, world_size=1, strategy="single", micro_batch=6)
    of_clips = ledger(clips, world_size=1, strategy="single", micro_batch=2)
    assert of_clips == replace(of_images, micro_batch=2)

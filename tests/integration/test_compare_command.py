"""`raydet compare` on run directories."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raydet.cli import main
from raydet.config import DetectionTask, Experiment, apply_overrides
from raydet.metrics.coco import GroundTruth, evaluate_coco
from raydet.metrics.event_evaluation import measure_events
from raydet.metrics.records import RECORDS, write_records
from raydet.recipes import recipe
from raydet.tasks.event_evaluation import card_of, frame_times

EXPERIMENT = recipe("demo")


def finished_run(
    run_dir: Path, *, noise: float, seed: int, experiment: Experiment = EXPERIMENT, num_images: int = 60
) -> Path:
    """A finished run whose boxes have Gaussian noise of `noise` pixels."""
    truths, generator = np.random.default_rng(0), np.random.default_rng(seed)
    count = 4 * num_images
    boxes = np.concatenate([truths.uniform(0, 60, (count, 2)), truths.uniform(15, 60, (count, 2))], axis=1)
    images, labels = truths.integers(0, num_images, count), truths.integers(0, 3, count)
    rows = np.column_stack(
        [images, boxes + generator.normal(0, noise, boxes.shape), generator.random(count), labels]
    )
    names = [f"image_{index:03d}" for index in range(num_images)]
    _, records = evaluate_coco(
        GroundTruth(num_images, images, boxes, labels),
        rows,
        experiment.data.classes,
        image_ids=names,
        group_ids=[name[:-1] for name in names],
    )
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(experiment.to_json())
    write_records(run_dir / RECORDS, records)
    return run_dir


def event_run(
    run_dir: Path, *, noise: float, seed: int, protocol: dict[str, Any], head: float = 0.05
) -> Path:
    """A finished run on eight sequences of an event camera."""
    experiment = apply_overrides(
        EXPERIMENT, {"task.event": protocol, "model.head.score_threshold": head, "seed": seed}
    )
    assert isinstance(experiment.task, DetectionTask)
    assert experiment.task.event is not None
    truths, generator = np.random.default_rng(0), np.random.default_rng(seed)
    images, labels = np.repeat(np.arange(96), 4), truths.integers(0, 3, 384)
    boxes = np.concatenate([truths.uniform(0, 60, (384, 2)), truths.uniform(15, 60, (384, 2))], axis=1)
    found = boxes + generator.normal(0, noise, boxes.shape)
    groups = [f"recording {image // 12}" for image in range(96)]
    truth = GroundTruth(96, images, boxes, labels, sizes_hw=np.tile([96, 128], (96, 1)))
    frames, _ = frame_times(groups, range(96), window_ms=50)
    _, records = measure_events(
        experiment.task,
        experiment.task.event,
        truth,
        np.column_stack([images, found, generator.random(384), labels]),
        experiment.data.classes,
        frames=frames,
        card=card_of(experiment.task, experiment.task.event, experiment, truth),
        group_ids=groups,
    )
    run_dir.mkdir(parents=True)
    (run_dir / "config.json").write_text(experiment.to_json())
    write_records(run_dir / RECORDS, records)
    return run_dir


def arm(directory: Path, name: str, *, noise: float, seeds: int, **settings: Any) -> Path:
    for seed in range(seeds):
        suffix = f"_seed{seed}" if seed else ""
        finished_run(directory / f"{name}{suffix}", noise=noise, seed=seed + len(name), **settings)
    return directory / name


def compared(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    with pytest.raises(SystemExit) as caught:
        main(["compare", *map(str, arguments), "--resamples", "200"])
    assert (caught.value.code or 0) == code
    output = capsys.readouterr()
    return output.out if code == 0 else output.err


def test_a_better_arm_is_better_on_either_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    good, bad = arm(tmp_path, "good", noise=2.0, seeds=3), arm(tmp_path, "worse", noise=5.0, seeds=3)
    text = compared(capsys, good, bad)
    assert text.splitlines()[-1] == "A is better"
    assert "good, 3 runs" in text
    found = json.loads(compared(capsys, bad.with_name("worse_seed1"), good, "--json"))
    assert found["verdict"] == "B is better"
    assert len(found["a"]) == len(found["b"]) == 3
    assert found["low"] < found["difference"] < found["high"] < 0


def test_equal_arms_are_not_distinguishable(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = arm(tmp_path, "one", noise=3.0, seeds=3), arm(tmp_path, "other", noise=3.0, seeds=3)
    assert compared(capsys, one, other).splitlines()[-1].startswith("not distinguishable: ")


def test_one_run_on_a_side_gives_no_verdict(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = arm(tmp_path, "one", noise=3.0, seeds=1), arm(tmp_path, "other", noise=9.0, seeds=3)
    assert "unknown: the noise of training cannot be estimated from one run per side" in compared(
        capsys, one, other
    )


@pytest.mark.parametrize(
    ("changes", "message", "helps"),
    [
        ({"train.epochs": 99}, "train.epochs is", True),
        ({"data.canvas_hw": [64, 64]}, "data.canvas_hw is", True),
        ({"optim.lr": 0.5}, "optim.lr is", True),
        ({"evaluate.size_bins_px": [16, 48]}, "task.size_bins_px is", True),
        ({"data.classes": ["x", "y", "z"]}, "their classes differ", False),
    ],
)
def test_runs_with_different_settings_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str, helps: bool
) -> None:
    other = apply_overrides(EXPERIMENT, changes)
    a = arm(tmp_path, "a", noise=3.0, seeds=2)
    b = arm(tmp_path, "bb", noise=3.0, seeds=2, experiment=other)
    refusal = compared(capsys, a, b, code=2)
    assert message in refusal
    assert refusal.count("\n") == 1
    compared(capsys, a, b, "--anyway", code=0 if helps else 2)


def on_shards(directory: Path, name: str, *, path: str, content: str) -> Path:
    source = {"kind": "shards", "path": path, "sha256": content * 64}
    experiment = apply_overrides(EXPERIMENT, {"data.source": source})
    run = arm(directory, name, noise=3.0, seeds=2, experiment=experiment)
    for repeat in (run, run.with_name(f"{name}_seed1")):
        data = {"sha256": content * 64, "content_sha256": content * 64}
        (repeat / "model_info.json").write_text(json.dumps({"data": data}))
    return run


def test_shards_are_equal_if_their_content_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    here = on_shards(tmp_path, "here", path="/data/set", content="a")
    there = on_shards(tmp_path, "elsewhere", path="s3://bucket/set", content="a")
    other = on_shards(tmp_path, "something", path="/data/set", content="b")
    compared(capsys, here, there)
    assert "data.source." in compared(capsys, here, other, code=2)
    compared(capsys, here, other, "--anyway")
    info = there / "model_info.json"  # the set was converted again, and the run's config did not pin it
    info.write_text(info.read_text().replace("a" * 64, "b" * 64))
    assert "data.source." in compared(capsys, here, there, code=2)


def test_data_that_changed_at_one_path_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = arm(tmp_path, "a", noise=3.0, seeds=1), arm(tmp_path, "bb", noise=3.0, seeds=1)
    for run, content in ((a, "a"), (b, "b")):
        (run / "model_info.json").write_text(json.dumps({"data": {"content_sha256": content * 64}}))
    refusal = compared(capsys, a, b, code=2)
    assert "the data have changed between the runs: content_sha256 is aaaaaaaaaaaa against bbb" in refusal


def test_other_images_and_unfinished_runs_are_rejected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a = arm(tmp_path, "a", noise=3.0, seeds=2)
    b = arm(tmp_path, "bb", noise=3.0, seeds=2, num_images=50)
    assert "they were evaluated on different images" in compared(capsys, a, b, code=2)
    (b / RECORDS).unlink()
    (tmp_path / "bb_seed1" / RECORDS).unlink()
    assert "the run is not finished" in compared(capsys, a, b, code=2)
    (b / "final_results.json").touch()
    assert "the run is older than records of evaluations" in compared(capsys, a, b, code=2)
    assert "is no run directory" in compared(capsys, a, tmp_path / "nothing", code=2)


def test_runs_that_are_not_repeats_are_not_pooled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a, b = arm(tmp_path, "a", noise=3.0, seeds=2), arm(tmp_path, "bb", noise=3.0, seeds=2)
    longer = apply_overrides(EXPERIMENT, {"train.epochs": 99, "seed": 7})
    finished_run(tmp_path / "a_seed7", noise=3.0, seed=7, experiment=longer)
    assert "a_seed7 is not a repeat of" in compared(capsys, a, b, code=2)


def test_an_arm_is_not_compared_with_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = arm(tmp_path, "a", noise=3.0, seeds=2)
    assert "a is compared with itself" in compared(capsys, a, a.with_name("a_seed1"), code=2)


PROTOCOL: dict[str, Any] = {"min_diagonal_px": 30, "min_side_px": 10, "tolerance_ms": 0}


def test_runs_of_one_protocol_are_compared_by_sequence_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for seed in range(3):
        suffix = f"_seed{seed}" if seed else ""
        event_run(tmp_path / f"good{suffix}", noise=2.0, seed=seed, protocol=PROTOCOL)
        event_run(tmp_path / f"worse{suffix}", noise=6.0, seed=seed + 10, protocol=PROTOCOL)
    good, worse = tmp_path / "good", tmp_path / "worse"
    *_, verdict, by_sequence = compared(capsys, good, worse).splitlines()
    assert verdict == "A is better"
    assert by_sequence.startswith("8 sequences: A higher in 8, mean difference +0.")
    assert "sign-flip p 0.0078 (with 8 sequences p cannot fall below .0078); protocol " in by_sequence
    found = json.loads(compared(capsys, worse, good, "--json"))
    assert found["num_groups"] == found["by_sequence"]["test"]["num_sequences"] == 8
    assert found["by_sequence"]["test"]["num_better"] == 0
    assert by_sequence.endswith(found["by_sequence"]["protocol"])


@pytest.mark.parametrize(
    ("protocol", "head", "message"),
    [
        ({**PROTOCOL, "tolerance_ms": 25}, 0.05, "tolerance_ms is 0 against 25"),
        (
            {**PROTOCOL, "min_side_px": 12, "skip_ms": 400},
            0.05,
            "skip_ms is 500 against 400; min_side_px is 10 against 12",
        ),
        (PROTOCOL, 0.001, "confidence_threshold is 0.05 against 0.001"),
    ],
)
def test_runs_of_different_protocols_are_never_compared(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    protocol: dict[str, Any],
    head: float,
    message: str,
) -> None:
    a = event_run(tmp_path / "a", noise=2.0, seed=0, protocol=PROTOCOL)
    b = event_run(tmp_path / "b", noise=2.0, seed=1, protocol=protocol, head=head)
    for options in ((), ("--anyway",)):
        refusal = compared(capsys, a, b, *options, code=2)
        assert f"they were measured by different protocols, {message}; evaluate both by one" in refusal
        assert refusal.count("\n") == 1


def test_a_run_without_a_protocol_is_not_compared_with_one_that_has_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    event = event_run(tmp_path / "event", noise=2.0, seed=0, protocol=PROTOCOL)
    plain = arm(tmp_path, "plain", noise=2.0, seeds=1)
    assert "the second was measured without any" in compared(capsys, event, plain, "--anyway", code=2)
    assert "the first was measured without any" in compared(capsys, plain, event, "--anyway", code=2)

"""`raydet predict --stream`: windows one by one find what batches of them find, and memory ends at gaps alone."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from raydet.cli import main
from raydet.config import EventRecordingsSource, apply_overrides
from raydet.data.silent import WINDOW_US, SilentSet
from raydet.engine.open_run import open_trained, predicted
from raydet.engine.process import run_process
from raydet.engine.streaming import histogram_settings, stream
from raydet.errors import ConfigError
from raydet.files.events.open import open_events
from raydet.parallel.collectives import World
from raydet.recipes import recipe
from raydet.runs.run_dir import claim_run_directory

SETTINGS = {
    "data.source.num_sequences": 5,
    "train.epochs": 1,
    "train.steps_per_epoch": 6,
    "train.global_batch": 2,
    # Every cell is reported, so that no near tie decides what is.
    "model.head.score_threshold": 0.0,
    "model.head.nms_threshold": 1.0,
    "model.head.max_detections": 1000,
}
NUM_WINDOWS = 200


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "events"
    experiment = apply_overrides(recipe("event_demo"), SETTINGS)
    claim_run_directory(directory, experiment)
    run_process(experiment, run_dir=directory, world=World())
    return directory


def recording(path: Path, *, without: range = range(0)) -> Path:
    """Random events in bursts on a sensor of 128 x 128, as a .npy file of t, x, y, p; none in some windows."""
    generator = np.random.default_rng(0)
    parts = []
    for window in range(NUM_WINDOWS):
        if window in without:
            continue
        count = int(generator.integers(1, 400))
        t_us = np.sort(generator.integers(0, WINDOW_US, count)) + window * WINDOW_US
        t_us[0] = window * WINDOW_US  # windows begin with the recording
        left, top = generator.integers(0, 100, 2)
        x, y = (generator.integers(0, 24, count) + start for start in (left, top))
        parts.append(np.stack([t_us, x, y, generator.integers(0, 2, count)], axis=1))
    np.save(path, np.concatenate(parts))
    return path


def test_windows_one_by_one_equal_batches_of_them(run_dir: Path, tmp_path: Path) -> None:
    path = recording(tmp_path / "some_td.npy")
    source = EventRecordingsSource(root=str(tmp_path), classes=("bright", "dark"), size_hw=(128, 128))
    batches = open_trained(run_dir, data=source, is_labelled=False)
    rows = predicted(batches)
    rows = rows[rows[:, 6] >= 0]
    run = open_trained(run_dir)
    found = []
    for position, window in enumerate(
        stream(run, open_events(path, (128, 128)), histogram_settings(run), gap_us=10**6)
    ):
        assert window.is_reset == (position == 0)
        found += [
            [position, *box, score, label]
            for box, score, label in zip(
                window.detections.boxes_xyxy.tolist(),
                window.detections.scores.tolist(),
                window.detections.labels.tolist(),
                strict=True,
            )
        ]
    assert position == NUM_WINDOWS - 1
    streamed = np.array(found)
    streamed[:, 3:5] -= streamed[:, 1:3]
    assert len(streamed) == len(rows) > 100 * NUM_WINDOWS
    for position in range(NUM_WINDOWS):
        ours, theirs = (each[each[:, 0] == position] for each in (streamed, rows))
        np.testing.assert_allclose(np.sort(ours[:, 5]), np.sort(theirs[:, 5]), atol=1e-6)
        # Near ties may change places, so boxes are compared by their sums, weighted by the scores.
        boxes, others = (each[:, 5] @ each[:, 1:5] for each in (ours, theirs))
        np.testing.assert_allclose(boxes, others, rtol=1e-4)


def test_memory_ends_at_gaps_alone(run_dir: Path, tmp_path: Path) -> None:
    run = open_trained(run_dir)
    pause = range(60, 75)  # 15 windows: 750 ms and a little

    def streamed(path: Path, gap_us: int) -> dict[int, tuple[bool, list[float]]]:
        windows = stream(run, open_events(path, (128, 128)), histogram_settings(run), gap_us=gap_us)
        return {
            (window.end_us + 1) // WINDOW_US - 1: (window.is_reset, window.detections.scores.tolist())
            for window in windows
        }

    path = recording(tmp_path / "pause.npy", without=pause)
    remembered, forgotten = streamed(path, 2 * 10**6), streamed(path, 300_000)
    assert [number for number, (is_reset, _) in remembered.items() if is_reset] == [0]
    assert len(remembered) == NUM_WINDOWS
    assert [number for number, (is_reset, _) in forgotten.items() if is_reset] == [0, pause.stop]
    missing = set(range(NUM_WINDOWS)) - set(forgotten)
    assert missing
    assert missing < set(pause)
    assert remembered[59] == forgotten[59]
    assert remembered[pause.stop][1] != forgotten[pause.stop][1]


def test_the_command(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = recording(tmp_path / "some.npy")

    def exit_code(*arguments: object) -> int | str | None:
        with pytest.raises(SystemExit) as caught:
            main(["predict", str(run_dir), "--output", str(tmp_path / "out"), "--cpu", *map(str, arguments)])
        return caught.value.code

    assert not exit_code("--stream", path, "--sensor", "128x128")
    said = capsys.readouterr().out
    assert f"in {NUM_WINDOWS} windows of 50 ms" in said
    assert "memory emptied 1 time, the first window's included" in said
    assert "p99" in said
    with (tmp_path / "out" / "stream.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["class"] for row in rows} <= {"bright", "dark"}
    times = [int(row["end_us"]) for row in rows]
    assert times == sorted(times)
    for arguments, message in (
        ((path,), "size_hw"),
        ((path, "--sensor", "128"), "--sensor: expected HEIGHTxWIDTH, such as 720x1280, got '128'"),
        ((tmp_path / "none.npy",), "expected a recording"),
        ((path, "--data", tmp_path), "--stream and --data are both given"),
    ):
        assert exit_code("--stream", *arguments) in (2, 3)
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1


def test_a_run_on_images_streams_nothing(tmp_path: Path) -> None:
    experiment = apply_overrides(
        recipe("demo"), {"data.source.num_sequences": 4, "train.epochs": 1, "train.steps_per_epoch": 1}
    )
    claim_run_directory(tmp_path / "run", experiment)
    run_process(experiment, run_dir=tmp_path / "run", world=World())
    with pytest.raises(ConfigError, match="expected a run that reads the event modality alone, got rgb"):
        histogram_settings(open_trained(tmp_path / "run"))


def test_the_embedded_set_has_the_default_histograms() -> None:
    images = SilentSet(num_sequences=2, seed=0)
    assert images.read(0).modalities["event"].shape == (20, 128, 128)

"""Images of runs that have trained, from their directories."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from raydet.config import apply_overrides
from raydet.engine.open_run import open_trained
from raydet.engine.process import run_process
from raydet.errors import ConfigError, DataError
from raydet.metrics.records import RECORDS, read_records, write_records
from raydet.parallel.collectives import World
from raydet.recipes import recipe
from raydet.report.drawings.detections import NO_MATCH, matched_truths
from raydet.report.drawings.ranking import image_scores
from raydet.report.drawings.run import detect_image, drawings_of_run
from raydet.runs.run_dir import claim_run_directory


def trained(run_dir: Path, **settings: Any) -> Path:
    short = {
        "data.source": {
            "kind": "synthetic",
            "num_sequences": 12,
            "frames_per_sequence": 3,
            "size_hw": [96, 128],
        },
        "data.missing": ["event"],
        "train.epochs": 1,
        "model.head.score_threshold": 0.0,  # so short a run finds nothing that it is sure of
    }
    changes = short | {name.replace("__", "."): value for name, value in settings.items()}
    experiment = apply_overrides(recipe("demo"), changes)
    claim_run_directory(run_dir, experiment)
    run_process(experiment, run_dir=run_dir, world=World())
    return run_dir


@pytest.fixture(scope="module")
def gaff_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("gaff"), model__fusion={"kind": "gaff"}, train__epochs=5)


def test_a_run_has_its_best_its_worst_and_its_attention(gaff_run: Path) -> None:
    drawings = drawings_of_run(gaff_run, count=1)
    assert [drawing.name for drawing in drawings] == ["best-1", "worst-1", "attention"]
    assert drawings == drawings_of_run(gaff_run, count=1)
    for drawing in drawings:
        assert len(drawing.png) < 150_000
        image = Image.open(io.BytesIO(drawing.png))
        assert image.format == "PNG"
        assert min(image.size) > 300
        assert "sequence_" in drawing.title
    assert "Dashed white: ground truth" in drawings[0].caption


def test_right_and_wrong_are_those_of_the_runs_evaluation(gaff_run: Path) -> None:
    scores, run = image_scores(read_records(gaff_run)), open_trained(gaff_run)
    assert scores.right_I.sum() > 0
    for position, index in enumerate(run.indices):
        sample, found = detect_image(run, index)
        matched = matched_truths(sample, found)[(found.scores >= scores.score_threshold).numpy()]
        assert (matched != NO_MATCH).sum() == scores.right_I[position]
        assert (matched == NO_MATCH).sum() == scores.wrong_I[position]


def test_one_modality_and_nothing_found(tmp_path: Path) -> None:
    identity = {"kind": "identity"}
    run_dir = trained(
        tmp_path, model__fusion=identity, model__elsewhere=identity, model__head__score_threshold=1.0
    )
    drawings = drawings_of_run(run_dir, count=9)
    assert sorted({drawing.name.split("-")[0] for drawing in drawings}) == ["best", "worst"]
    assert len(drawings) == len(open_trained(run_dir).indices)
    assert all("0 right, 0 wrong" in drawing.caption for drawing in drawings)
    assert all("none is right at any threshold" in drawing.caption for drawing in drawings)
    assert open_trained(run_dir).unused_modalities == {"thermal"}


def test_a_run_that_has_not_ended_is_named(tmp_path: Path) -> None:
    claim_run_directory(tmp_path, recipe("demo"))
    with pytest.raises(ConfigError, match=r"records\.npz is missing; run its command again"):
        drawings_of_run(tmp_path)


def test_other_data_than_the_run_was_evaluated_on_are_named(gaff_run: Path, tmp_path: Path) -> None:
    records = read_records(gaff_run)
    records.image_ids[0] = "gone"
    for name in ("config.json", "checkpoints"):
        (tmp_path / name).symlink_to(gaff_run / name)
    write_records(tmp_path / RECORDS, records)
    with pytest.raises(DataError, match="other images"):
        drawings_of_run(tmp_path)

"""Anomalies of a run that has trained for a moment: at its end, `raydet calibrate`, `raydet anomalies`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from torch.nn.functional import interpolate

from raydet.cli import main
from raydet.config import Experiment, apply_overrides
from raydet.data.transforms import eval_transform
from raydet.engine.calibration import CALIBRATION, Block, Work, calibrate, read_calibration
from raydet.engine.open_run import TrainedRun, open_trained
from raydet.engine.process import run_process
from raydet.errors import ConfigError, DataError
from raydet.metrics.names import ANOMALY_METRICS, ANOMALY_SCORES, AUROC, PER_IMAGE_AUROC
from raydet.metrics.records import read_records, score
from raydet.ops import anomaly_scores
from raydet.parallel.collectives import World
from raydet.recipes import recipe
from raydet.report.anomalies import compare_scores, measure_anomalies
from raydet.runs.run_dir import CONFIG, claim_run_directory
from raydet.structures import ANOMALY, IGNORE, collate, mask_of

SETTINGS = {
    "data.source.num_train": 40,
    "data.source.num_val": 4,
    "data.source.num_calibration": 20,  # more than a block
    "data.source.num_test": 9,
    "train.epochs": 2,
    "train.eval_every": 1,
    "train.eval_batch": 3,
}


def trained(directory: Path, **overrides: object) -> Path:
    experiment = apply_overrides(
        recipe("anomaly_demo"), {**SETTINGS, **{name.replace("__", "."): x for name, x in overrides.items()}}
    )
    claim_run_directory(directory, experiment)
    run_process(experiment, run_dir=directory, world=World())
    return directory


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished and calibrated run."""
    directory = trained(tmp_path_factory.mktemp("runs") / "anomalies")
    calibrate(open_trained(directory, split="calibration"), "calibration").write(directory)
    return directory


def exit_code(*arguments: object) -> int | str | None:
    with pytest.raises(SystemExit) as caught:
        main([*map(str, arguments), "--cpu"])
    return caught.value.code


def truth_and_logits(run: TrainedRun, index: int) -> tuple[np.ndarray, torch.Tensor]:
    """The plain way: one image, whose canvas has its own size."""
    batch = collate([eval_transform(run.source.read(index), canvas_hw=run.experiment.data.canvas_hw)])
    with torch.no_grad():
        logits = run.model(batch, want="predictions").predictions.logits_BNHW
    truth = mask_of(run.source.targets(index)[0], "").ids_HW.numpy()
    full = interpolate(logits, size=truth.shape, mode="bilinear", align_corners=False)
    return truth, full[:, : run.experiment.num_classes]


def test_the_end_of_a_run_equals_scikit_learn(run_dir: Path) -> None:
    results = json.loads((run_dir / "final_results.json").read_text())
    final, first = results["final"], results["history"][0]
    assert results["task"]["anomaly_score"] == "energy"
    assert AUROC not in first  # known at the end only
    run = open_trained(run_dir, split="test")
    pooled, per_image = ([], []), []
    for index in run.indices:
        truth, logits = truth_and_logits(run, index)
        scores = anomaly_scores.energy(logits)[0].numpy()[truth != IGNORE]
        is_anomalous = truth[truth != IGNORE] == ANOMALY
        pooled[0].append(is_anomalous)
        pooled[1].append(scores.astype(np.float16))
        if is_anomalous.any() and not is_anomalous.all():
            per_image.append(roc_auc_score(is_anomalous, scores))
    labels, scores = map(np.concatenate, pooled)
    # Batches of another size round differently, so that a few scores move to the next float16.
    assert final["AUROC"] == pytest.approx(roc_auc_score(labels, scores), abs=1e-5)
    assert final["AP"] == pytest.approx(average_precision_score(labels, scores), abs=1e-5)
    assert final[PER_IMAGE_AUROC] == pytest.approx(np.mean(per_image), abs=1e-5)
    records = read_records(run_dir, is_final=True)
    assert score(records, AUROC) == final["AUROC"]
    assert set(records.image_ids) == {run.source.image_ids[index] for index in run.indices}
    assert "mIoU" in final
    with pytest.raises(ConfigError, match=r"task\.metric=AUROC is measured at the end"):
        trained(run_dir.with_name("never"), task__metric=AUROC)


def test_a_score_with_statistics_at_the_end_equals_the_one_afterwards(tmp_path: Path) -> None:
    """HEAT takes both passes of the calibration."""
    directory = trained(tmp_path / "heat", task__anomaly={"score": "heat"})
    final = json.loads((directory / "final_results.json").read_text())["final"]
    calibration = calibrate(open_trained(directory, split="calibration"), "calibration")
    found = measure_anomalies(open_trained(directory, split="test"), ["heat"], calibration)
    for metric in ANOMALY_METRICS:
        # Images are merged in other groups, so that a few scores move to the next float16.
        assert score(found["heat"].records, metric.name) == pytest.approx(final[metric.name], abs=1e-4)


def test_a_calibration_is_the_same_at_any_number_of_workers(run_dir: Path) -> None:
    run = open_trained(run_dir, split="calibration")
    others = [open_trained(run_dir, split="calibration") for _ in range(2)]

    def by_turns(work: Work, blocks: list[Block]) -> list[object]:
        """What two workers do, the last block first."""
        done = {number: work(others[number % 2], blocks[number]) for number in reversed(range(len(blocks)))}
        return [done[number] for number in range(len(blocks))]

    one, two, stored = (
        calibrate(run, "calibration"),
        calibrate(run, "calibration", mapper=by_turns),
        read_calibration(run),
    )
    assert stored is not None
    assert one.card == two.card == stored.card
    assert one.card.num_images == 20
    for other in (two, stored):
        assert one.thresholds == other.thresholds
        assert one.pixels_sha256 == other.pixels_sha256
        for name, array in one.statistics.arrays().items():
            assert np.array_equal(array, other.statistics.arrays()[name]), name


def test_moments_are_those_of_all_pixels(run_dir: Path) -> None:
    calibration = read_calibration(run := open_trained(run_dir, split="calibration"))
    assert calibration is not None
    best, classes, features, labels = [], [], [], []
    for index in run.indices:
        truth, logits = truth_and_logits(run, index)
        value, label = logits[0].max(dim=0)
        best.append(value.numpy()[truth != IGNORE])
        classes.append(label.numpy()[truth != IGNORE])
        batch = collate([eval_transform(run.source.read(index), canvas_hw=(96, 96))])
        with torch.no_grad():
            maps = run.model.encoder(run.model.rgb_input(batch), run.model.aux_input(batch)).maps
        features.append(maps[2][0].flatten(1).T.double().numpy())
        labels.append(batch.ids_BHW[0, 8::16, 8::16].flatten().numpy())
    best_P, class_P = np.concatenate(best), np.concatenate(classes)
    features_NC, label_N = np.concatenate(features), np.concatenate(labels)
    statistics = calibration.statistics
    residuals = []
    for label in range(run.experiment.num_classes):
        mine = best_P[class_P == label]
        assert statistics.logits.count_K[label] == pytest.approx(len(mine), abs=2)
        if len(mine) > 100:
            assert statistics.logits.mean_K[label] == pytest.approx(mine.mean(), abs=1e-3)
            assert statistics.logits.std[label] == pytest.approx(mine.std(), abs=1e-3)
        cells = features_NC[label_N == label]
        assert statistics.features.count_K[label] == len(cells)
        if len(cells):
            np.testing.assert_allclose(statistics.features.mean_KC[label], cells.mean(axis=0), atol=1e-4)
            residuals.append(cells - cells.mean(axis=0))
    scatter = np.concatenate(residuals).T @ np.concatenate(residuals)
    np.testing.assert_allclose(statistics.features.scatter_CC, scatter, rtol=1e-3, atol=1e-2)


def test_thresholds_call_one_pixel_in_twenty_anomalous(run_dir: Path) -> None:
    run = open_trained(run_dir, split="calibration")
    calibration = read_calibration(run)
    assert calibration is not None
    assert set(calibration.thresholds) == set(ANOMALY_SCORES)
    scores = []
    for index in run.indices:
        truth, logits = truth_and_logits(run, index)
        scores.append(anomaly_scores.max_logit(logits)[0].numpy()[truth != IGNORE])
    share = (np.concatenate(scores).astype(np.float16) >= calibration.thresholds["max_logit"]).mean()
    assert 0.04 < share <= 0.0501


def test_the_table(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not exit_code("anomalies", run_dir, "--draw", 2)
    text = capsys.readouterr().out
    for name in ANOMALY_SCORES:
        assert name in text
    assert "1 run, 9 images" in text
    assert "AUROC against max_softmax" in text
    directory = run_dir / "anomalies"
    content = json.loads((directory / "anomalies.json").read_text())
    assert set(content["scores"]) == set(ANOMALY_SCORES)
    energy = content["scores"]["energy"]
    final = json.loads((run_dir / "final_results.json").read_text())["final"]
    assert energy["metrics"]["AUROC"]["value"] == pytest.approx(final["AUROC"], abs=1e-6)
    [kept] = [row for row in energy["sweep"] if row["change"] == 0]
    assert kept["threshold"] == energy["calibrated_threshold"]
    assert kept["f1"] <= energy["best_f1"]["f1"] + 1e-9
    assert len(energy["sweep"]) == 11
    assert len(list(directory.glob("*.npz"))) == len(ANOMALY_SCORES)
    *drawn, curves = sorted(directory.glob("*.png"))
    assert (len(drawn), curves.name) == (2, "curves.png")
    with Image.open(drawn[0]) as image:
        assert image.size[0] > 1000


def test_json(run_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert not exit_code(
        "anomalies", run_dir, "--scores", "energy,max_logit", "--reference", "energy", "--json"
    )
    found = json.loads(capsys.readouterr().out)
    assert set(found["comparisons"]) == {"max_logit"}
    assert found["comparisons"]["max_logit"]["verdict"] in (
        "A is better",
        "B is better",
        "not distinguishable",
    )


def test_the_same_score_is_not_better_than_itself(run_dir: Path) -> None:
    """Two runs; the scores of one differ by a constant alone."""
    run = open_trained(run_dir, split="test")
    found = measure_anomalies(run, ["energy", "max_logit"], None)
    twice = {"energy": found["energy"], "max_logit": found["energy"]}
    metric = next(metric for metric in ANOMALY_METRICS if metric.name == AUROC)
    [(each, p_value)] = compare_scores([twice, twice], "energy", metric).values()
    assert (each.difference, p_value) == (0.0, 1.0)


def altered(run_dir: Path, directory: Path, **overrides: object) -> Path:
    """A copy of the run with another config."""
    shutil.copytree(run_dir, directory)
    experiment = Experiment.from_json((directory / CONFIG).read_text(), where="")
    changed = apply_overrides(experiment, {name.replace("__", "."): x for name, x in overrides.items()})
    (directory / CONFIG).write_text(changed.model_dump_json())
    return directory


def test_only_repeats_are_taken_together(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = altered(run_dir, tmp_path / "other", optim__lr=1e-4)
    assert exit_code("anomalies", run_dir, other, "--scores", "energy") == 2
    assert "is not a repeat of" in capsys.readouterr().err
    assert exit_code("anomalies", run_dir, run_dir, "--scores", "energy") == 2
    assert "have the same seed, 42" in capsys.readouterr().err
    repeat = altered(run_dir, tmp_path / "repeat", seed=43)
    both = ("--scores", "energy,max_logit", "--reference", "energy")
    assert not exit_code("anomalies", run_dir, repeat, *both)
    assert "2 runs, 9 images" in capsys.readouterr().out


def test_images_with_anomalies_are_not_calibrated_on(run_dir: Path, tmp_path: Path) -> None:
    other = altered(
        run_dir,
        tmp_path / "leak",
        data__split={"kind": "named", "test": ["calibration"], "calibration": ["test"]},
    )
    with pytest.raises(
        DataError, match=r"image test/strange_00000: expected one without anomalies .* anomalous pixels"
    ):
        calibrate(open_trained(other, split="calibration"), "calibration")


def test_calibrated_images_are_not_evaluated(run_dir: Path) -> None:
    run = open_trained(run_dir, split="calibration")
    with pytest.raises(ConfigError, match=r"image calibration/strange_00000 was calibrated on"):
        measure_anomalies(run, ["energy"], read_calibration(run))


def test_another_checkpoint(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    shutil.copytree(run_dir, other)
    run = open_trained(other)
    (run.checkpoint / "manifest.json").write_text((run.checkpoint / "manifest.json").read_text() + " ")
    with pytest.raises(
        ConfigError, match=r"calibration\.npz belongs to another checkpoint.* run raydet calibrate again"
    ):
        read_calibration(run)
    (other / CALIBRATION).write_bytes(b"PK damaged")
    assert exit_code("anomalies", other) == 3
    assert "calibrate" in capsys.readouterr().err


def test_what_is_refused(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(run_dir, bare)
    (bare / CALIBRATION).unlink()
    assert exit_code("anomalies", bare, "--scores", "all") == 2
    assert "need statistics: run raydet calibrate" in capsys.readouterr().err
    assert not exit_code("anomalies", bare)  # those that need none
    assert "heat" not in capsys.readouterr().out
    assert exit_code("anomalies", bare, "--split", "val") == 3
    assert "expected anomalies in the images to evaluate, got none in 4" in capsys.readouterr().err
    assert exit_code("calibrate", bare, "--split", "test") == 2
    capsys.readouterr()
    assert exit_code("anomalies", bare, "--scores", "energi") == 2
    assert "unknown 'energi'; known: max_softmax" in capsys.readouterr().err
    with pytest.raises(
        ConfigError, match=r"task\.anomaly \(energy\) needs test images, data\.split \(group\)"
    ):
        trained(tmp_path / "no_test", data__split={"kind": "group"})


@pytest.mark.slow
def test_calibrating_on_ray(run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def content(directory: Path) -> dict[str, np.ndarray]:
        with np.load(directory / CALIBRATION) as file:
            return dict(file)

    expected = content(run_dir)
    for workers in (1, 2, 4):  # four do not get a CPU each on two cores
        other = tmp_path / str(workers)
        shutil.copytree(run_dir, other)
        (other / CALIBRATION).unlink()
        assert not exit_code("calibrate", other, "--workers", workers)
        found = content(other)
        assert all(np.array_equal(found[name], expected[name]) for name in expected if name != "card")

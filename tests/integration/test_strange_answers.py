"""What is planted in the embedded set `strange` is what trained models find, over three seeds.

Far objects have a hue and stripes that no class has; near ones have the hue of one bucket and the stripes of another.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from raydet.cli import main
from raydet.config import StrangeSource, apply_overrides
from raydet.data.strange import StrangeSet
from raydet.data.transforms import eval_transform
from raydet.engine.calibration import calibrate
from raydet.engine.open_run import open_trained
from raydet.engine.process import run_process
from raydet.metrics.names import ANOMALY_SCORES
from raydet.ops import anomaly_scores
from raydet.parallel.collectives import World
from raydet.recipes import recipe
from raydet.runs.run_dir import claim_run_directory
from raydet.structures import ANOMALY, IGNORE, collate, mask_of

SEEDS = (0, 1, 2)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Finished and calibrated runs that differ in nothing but the seed."""
    directories = []
    for seed in SEEDS:
        experiment = apply_overrides(recipe("anomaly_demo"), {"seed": seed})
        directory = tmp_path_factory.mktemp("runs") / f"seed{seed}"
        claim_run_directory(directory, experiment)
        run_process(experiment, run_dir=directory, world=World())
        calibrate(open_trained(directory, split="calibration"), "calibration").write(directory)
        directories.append(directory)
    return directories


@pytest.mark.slow
def test_far_objects_are_found_and_near_ones_less(runs: list[Path]) -> None:
    settings = StrangeSource()
    images = StrangeSet(
        (settings.num_train, settings.num_val, settings.num_calibration, settings.num_test),
        seed=settings.seed,
    )
    for directory in runs:
        run = open_trained(directory, split="test")
        scores, kinds = [], []
        for index in run.indices:
            truth_HW = mask_of(images.targets(index)[0], "").ids_HW.numpy()
            batch = collate([eval_transform(run.source.read(index), canvas_hw=truth_HW.shape)])
            with torch.no_grad():
                logits = run.model(batch, want="predictions").predictions.logits_BNHW
            classes = logits[:, : run.experiment.num_classes]
            full = torch.nn.functional.interpolate(classes, size=truth_HW.shape, mode="bilinear")
            kind_HW = np.where(truth_HW == ANOMALY, 1 + images.is_near(index), 0)
            is_counted = truth_HW != IGNORE
            scores.append(anomaly_scores.max_logit(full)[0].numpy()[is_counted])
            kinds.append(kind_HW[is_counted])
        score, kind = np.concatenate(scores), np.concatenate(kinds)
        # Each kind against the pixels of the classes, without the other kind.
        far, near = (
            roc_auc_score((kind == own)[kind != other], score[kind != other])
            for own, other in ((1, 2), (2, 1))
        )
        assert far > 0.8
        assert far > near


@pytest.mark.slow
def test_all_scores_are_compared_over_the_seeds(runs: list[Path], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["anomalies", *map(str, runs), "--json", "--cpu"])
    assert not caught.value.code
    found = json.loads(capsys.readouterr().out)
    assert len(found["runs"]) == len(SEEDS)
    for content in found["runs"]:
        for name in ("max_softmax", "max_logit", "energy", "entropy"):
            assert content["scores"][name]["metrics"]["AUROC"]["value"] > 0.8, name
    assert found["comparisons"].keys() == set(ANOMALY_SCORES) - {found["reference"]}
    for comparison in found["comparisons"].values():
        is_found = comparison["corrected_p_value"] < 0.05
        assert is_found == (comparison["verdict"] != "not distinguishable")

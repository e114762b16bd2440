"""How well the anomaly scores of trained runs find what no class describes, and whether one score is better.

Runs that differ in their seed alone are repeats. Scores are compared on the same runs and images, so a difference has
no noise but that of the difference itself.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from raydet.config import AnomalyScore, Metric
from raydet.data.split import groups_of
from raydet.engine.calibration import Calibration
from raydet.engine.open_run import TrainedRun, require_masks
from raydet.errors import ConfigError, DataError
from raydet.metrics.anomaly import AtThreshold, BestF1
from raydet.metrics.anomaly_records import AnomalyRecords, image_rows
from raydet.metrics.names import ANOMALY_METRICS, CALIBRATED_SCORES
from raydet.metrics.records import score, write_records
from raydet.runs.run_dir import write_atomically
from raydet.stats.bootstrap import paired_differences
from raydet.stats.comparison import Comparison, compare, holm
from raydet.stats.measured import NO_SEEDS, RESAMPLES, measured
from raydet.structures import ANOMALY, IGNORE
from raydet.tasks.anomaly_maps import anomaly_map
from raydet.tasks.pixel_outputs import pixel_outputs

ANOMALIES = "anomalies"
"""Directory in a run's: `<score>.npz` and `anomalies.json`."""


@dataclass(frozen=True, slots=True)
class ScoreResult:
    """One score on one run's images."""

    records: AnomalyRecords
    threshold: float | None
    """From the calibration; None: there is none."""

    @property
    def best(self) -> BestF1:
        """Chosen on these very images: optimistic."""
        return self.records.histogram().best_f1()

    @property
    def at_threshold(self) -> AtThreshold | None:
        """What the calibration's threshold reaches here."""
        return None if self.threshold is None else self.records.histogram().at_threshold(self.threshold)


def measure_anomalies(
    run: TrainedRun,
    names: Sequence[AnomalyScore],
    calibration: Calibration | None,
    *,
    tell: Callable[[int, int], None] = lambda done, total: None,
) -> dict[AnomalyScore, ScoreResult]:
    """The scores of a run on its evaluation images, by name.

    Args:
        calibration: of the run, see `raydet.engine.calibration.read_calibration`.
        tell: takes the number of images that are done, and of all.

    Raises:
        ConfigError: a score needs a calibration, the run's task is not segmentation, or an image was calibrated on.
        DataError: there are no anomalies, or an image cannot be read.
    """
    if calibration is None and (needy := [name for name in names if name in CALIBRATED_SCORES]):
        raise ConfigError(
            f"{run.run_dir}: {', '.join(needy)} need statistics: run raydet calibrate {run.run_dir} first, or choose "
            "others with --scores"
        )
    require_masks(run)
    groups = groups_of(run.source.group_ids, run.experiment.data.split)
    parts: dict[AnomalyScore, list[AnomalyRecords]] = {name: [] for name in names}
    for done, outputs in enumerate(pixel_outputs(run.model, run.source, run.indices, run.experiment), 1):
        image_id, group_id = run.source.image_ids[outputs.index], groups[outputs.index]
        if calibration is not None and outputs.pixels_sha256 in calibration.pixels_sha256:
            raise ConfigError(
                f"{run.run_dir}: image {image_id} was calibrated on, so its scores would be too good; evaluate on "
                "other images, or calibrate on others"
            )
        counted_HW = outputs.truth_HW != IGNORE
        is_anomalous_N = (outputs.truth_HW == ANOMALY)[counted_HW].numpy()
        for name in names:
            statistics = None if calibration is None else calibration.statistics
            scores_N = anomaly_map(name, outputs, statistics).cpu()[counted_HW].numpy()
            parts[name].append(
                AnomalyRecords.of_rows(
                    image_rows(0, scores_N, is_anomalous_N),
                    image_ids=np.array([image_id]),
                    group_ids=np.array([group_id]),
                )
            )
        tell(done, len(run.indices))
    thresholds: Mapping[AnomalyScore, float] = {} if calibration is None else calibration.thresholds
    found = {
        name: ScoreResult(AnomalyRecords.of_parts(some), thresholds.get(name)) for name, some in parts.items()
    }
    for result in found.values():
        if not result.records.anomalous_N.any():
            raise DataError(
                f"{run.run_dir}: expected anomalies in the images to evaluate, got none in {len(run.indices)}; choose "
                "other images with --split or --data, and name anomalies in classes.yaml (anomaly: true)"
            )
    return found


def check_repeats(runs: Sequence[TrainedRun]) -> None:
    """Refuse runs that are no repeats of one another.

    Raises:
        ConfigError: more than the seed differs, or it does not.
    """
    first, *others = (run.experiment.model_copy(update={"seed": 0, "name": ""}) for run in runs)
    for run, other in zip(runs[1:], others, strict=True):
        if other != first:
            raise ConfigError(
                f"{run.run_dir} is not a repeat of {runs[0].run_dir}: expected runs that differ in their seed alone; "
                "give them one by one"
            )
    by_seed: dict[int, TrainedRun] = {}
    for run in runs:
        if (same := by_seed.setdefault(run.experiment.seed, run)) is not run:
            raise ConfigError(
                f"{same.run_dir} and {run.run_dir} have the same seed, {run.experiment.seed}: expected repeats with "
                "seeds of their own"
            )


def compare_scores(
    runs: Sequence[Mapping[AnomalyScore, ScoreResult]], reference: AnomalyScore, metric: Metric
) -> dict[AnomalyScore, tuple[Comparison, float | None]]:
    """Every other score against a reference on the same runs, with the p value corrected for their number (Holm).

    Raises:
        ConfigError: the runs were evaluated on different images.
    """
    sign = 1.0 if metric.higher_is_better else -1.0
    base = [run[reference].records for run in runs]
    if any(not base[0].is_comparable(other) for other in base):
        raise ConfigError(
            "the runs were evaluated on different images; give runs that differ in their seed alone"
        )
    others = [name for name in runs[0] if name != reference]
    found = {}
    for name in others:
        records = [run[name].records for run in runs]
        differences = [
            sign * (score(a, metric.name) - score(b, metric.name)) for a, b in zip(records, base, strict=True)
        ]
        found[name] = compare(
            [differences],
            (),
            sign * paired_differences(records, base, metric.name, count=RESAMPLES),
            num_groups=len(set(base[0].group_ids.tolist())),
            spread=None if len(runs) > 1 else NO_SEEDS,
            family=len(others),
        )
    p_values = {name: each.p_value for name, each in found.items() if each.p_value is not None}
    corrected = dict(zip(p_values, holm(list(p_values.values())), strict=True))
    return {name: (each, corrected.get(name)) for name, each in found.items()}


def write_anomalies(
    run: TrainedRun, results: Mapping[AnomalyScore, ScoreResult], about: Mapping[str, object]
) -> dict[str, object]:
    """Write the records of every score and `anomalies.json` into the run's directory, and return the latter.

    Args:
        about: other entries of the JSON: run and images.
    """
    directory = run.run_dir / ANOMALIES
    directory.mkdir(exist_ok=True)
    for name, result in results.items():
        write_records(directory / f"{name}.npz", result.records)
    content = {**about, "scores": {name: _as_json(result) for name, result in results.items()}}
    write_atomically(directory / "anomalies.json", json.dumps(content, indent=2) + "\n")
    return content


SWEEP = (-1.0, -0.75, -0.5, -0.25, -0.1, 0.0, 0.1, 0.25, 0.5, 0.75, 1.0)
"""Relative changes of the calibrated threshold, as a published comparison swept its own."""


def _as_json(result: ScoreResult) -> dict[str, object]:
    """The metrics with intervals, and the thresholds; null for undefined numbers."""
    histogram = result.records.histogram()
    sweep = (
        [] if result.threshold is None else [(change, result.threshold * (1 + change)) for change in SWEEP]
    )
    return {
        "metrics": {
            name: {"value": _finite(each.value), "interval": each.interval}
            for name, each in measured(result.records, ANOMALY_METRICS).items()
        },
        "best_f1": {"f1": _finite(result.best.f1), "threshold": _finite(result.best.threshold)},
        "calibrated_threshold": result.threshold,
        "sweep": [
            {"change": change, "threshold": threshold, **_known(histogram.at_threshold(threshold)._asdict())}
            for change, threshold in sweep
        ],
    }


def _known(values: Mapping[str, float]) -> dict[str, float | None]:
    return {name: _finite(value) for name, value in values.items()}


def _finite(value: float) -> float | None:
    """JSON has no infinity and no NaN."""
    return value if math.isfinite(value) else None

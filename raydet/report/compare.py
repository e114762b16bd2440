"""Runs against runs: the same detector with several seeds on either side."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from raydet.config import Experiment
from raydet.engine.open_run import recorded_experiment
from raydet.errors import ConfigError
from raydet.metrics.matches import MatchRecords, mean_average_precision
from raydet.runs.run_dir import FINAL_RESULTS, MATCH_RECORDS, recorded_model_info
from raydet.stats.bootstrap import is_same_images, paired_differences
from raydet.stats.comparison import Comparison, compare


@dataclass(frozen=True, slots=True)
class Arm:
    """One detector, trained with one or more seeds."""

    name: str
    runs: tuple[Path, ...]
    experiment: Experiment
    """Of its first run."""
    records: tuple[MatchRecords, ...]


def open_arm(run_dir: Path) -> Arm:
    """A run and, beside it, its repeats with other seeds (`<run>_seed<n>`).

    Raises:
        ConfigError: there is no finished run.
        DataError: its match records cannot be read.
    """
    recorded_experiment(run_dir)
    name = re.sub(r"_seed\d+$", "", run_dir.name)
    repeats = [
        path for path in sorted(run_dir.parent.glob(f"{name}_seed*")) if re.search(r"_seed\d+$", path.name)
    ]
    candidates = [run_dir.with_name(name), *repeats]
    runs = tuple(path for path in candidates if (path / MATCH_RECORDS).is_file())
    if not runs:
        raise ConfigError(
            f"{run_dir} cannot be compared: {MATCH_RECORDS} is missing; {_why_missing(run_dir)}"
        )
    experiments = [recorded_experiment(run) for run in runs]
    for run, other in zip(runs, experiments, strict=True):
        if _but_for_the_seed(other) != _but_for_the_seed(experiments[0]):
            raise ConfigError(
                f"{run} is no repeat of {runs[0]}: more than the seed differs; move one of them away"
            )
    return Arm(name, runs, experiments[0], tuple(MatchRecords.load(run / MATCH_RECORDS) for run in runs))


def _why_missing(run_dir: Path) -> str:
    if (run_dir / FINAL_RESULTS).exists():
        return f"the run is older than such records: remove its {FINAL_RESULTS} and give its command again"
    return "the run has not come to its end, give its command again"


def _but_for_the_seed(experiment: Experiment) -> Experiment:
    return experiment.model_copy(update={"seed": 0, "name": ""})


def compare_arms(a: Arm, b: Arm, *, count: int = 1000, is_forced: bool = False) -> Comparison:
    """A against B, on the images that both were evaluated on.

    Args:
        count: resampled sets.
        is_forced: schedules and canvases may differ.

    Raises:
        ConfigError: they cannot be compared, or not fairly; why.
    """
    if a.runs == b.runs:
        raise ConfigError(f"{a.name} is compared with itself; name another run")
    differences = _unlike(a, b)
    if differences and not is_forced:
        raise ConfigError(
            f"{a.name} and {b.name} cannot be compared fairly: {'; '.join(differences)}; --anyway compares all the same"
        )
    if a.experiment.data.classes != b.experiment.data.classes:
        raise ConfigError(
            f"{a.name} and {b.name} cannot be compared: their classes differ, {', '.join(a.experiment.data.classes)} "
            f"against {', '.join(b.experiment.data.classes)}"
        )
    if any(not is_same_images(a.records[0], other) for other in (*a.records, *b.records)):
        raise ConfigError(
            f"{a.name} and {b.name} cannot be compared: they were evaluated on other images, or other boxes; "
            "give both the same data and data.split"
        )
    scores_a, scores_b = ([mean_average_precision(run) for run in arm.records] for arm in (a, b))
    resampled = paired_differences(a.records, b.records, count=count)
    if len(resampled) < 2:
        raise ConfigError(f"{a.name} and {b.name} cannot be compared: their images hold no objects")
    num_groups = len(set(a.records[0].group_ids.tolist()))
    return compare([scores_a], [scores_b], resampled, num_groups=num_groups)


ALIKE = (
    "train.epochs",
    "train.global_batch",
    "train.micro_batch",
    "optim",
    "data.source",
    "data.split",
    "data.canvas_hw",
    "data.augmentation",
    "data.missing",
    "data.simulate_events",
    "evaluate",
)
"""What should be equal in a fair comparison, by config path."""


def _unlike(a: Arm, b: Arm) -> list[str]:
    found = []
    contents = {_content_hash(run) for run in (*a.runs, *b.runs)}
    for path in ALIKE:
        mine, theirs = (_at(arm.experiment, path) for arm in (a, b))
        is_same_data = path == "data.source" and len(contents) == 1 and None not in contents
        if mine != theirs and not is_same_data:
            found.append(f"{path} is {mine} against {theirs}")
    if len(contents) > 1 and not any(text.startswith("data.source") for text in found):
        shown = " against ".join(sorted(str(content)[:12] for content in contents))
        found.append(f"the data have changed between the runs: content_sha256 is {shown}")
    batches = [recorded_model_info(arm.runs[0]).get("micro_batch") for arm in (a, b)]
    if batches[0] != batches[1] and not found:
        found.append(f"micro-batches were of {batches[0]} against {batches[1]} images, which batch norms see")
    return found


def _content_hash(run: Path) -> str | None:
    """Of its data, wherever they lay and however they were encoded; None: they were not converted to shards."""
    return (recorded_model_info(run).get("data") or {}).get("content_sha256")


def _at(experiment: Experiment, path: str) -> object:
    value: object = experiment
    for part in path.split("."):
        value = getattr(value, part)
    return value

"""`raydet compare`: two detectors, each trained with one or more seeds, compared on the same images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from operator import attrgetter
from pathlib import Path

from raydet.config import Experiment, Metric, Task
from raydet.config.base import Config
from raydet.engine.open_run import recorded_experiment
from raydet.errors import ConfigError
from raydet.metrics.event_records import EventRecords, protocol_differences
from raydet.metrics.names import bounds_of, deciding_metric, metrics_of
from raydet.metrics.records import RECORDS, Records, has_records, read_records, score
from raydet.runs.run_dir import FINAL_RESULTS, recorded_model_info
from raydet.stats.bootstrap import paired_differences
from raydet.stats.comparison import Comparison, compare
from raydet.stats.sign_flip import SignFlip, sequence_differences, sign_flip


@dataclass(frozen=True, slots=True)
class Arm:
    """One detector, trained with one or more seeds."""

    name: str
    runs: tuple[Path, ...]
    experiment: Experiment
    """The experiment of the first run."""
    records: tuple[Records, ...]


def open_arm(run_dir: Path) -> Arm:
    """Open a run and the repeats with other seeds beside it (`<run>_seed<n>`).

    Raises:
        ConfigError: there is no finished run, or one beside it is not a repeat.
        DataError: records cannot be read.
    """
    recorded_experiment(run_dir)
    name = re.sub(r"_seed\d+$", "", run_dir.name)
    repeats = [
        path for path in sorted(run_dir.parent.glob(f"{name}_seed*")) if re.search(r"_seed\d+$", path.name)
    ]
    candidates = [run_dir.with_name(name), *repeats]
    runs = tuple(path for path in candidates if has_records(path))
    if not runs:
        is_old = (run_dir / FINAL_RESULTS).exists()
        why = (
            f"the run is older than records of evaluations: remove its {FINAL_RESULTS} and run its command again"
            if is_old
            else "the run is not finished: run its command again"
        )
        raise ConfigError(f"{run_dir} cannot be compared: {RECORDS} is missing; {why}")
    experiments = [recorded_experiment(run) for run in runs]
    first, *others = (experiment.model_copy(update={"seed": 0, "name": ""}) for experiment in experiments)
    for run, other in zip(runs[1:], others, strict=True):
        if other != first:
            raise ConfigError(
                f"{run} is not a repeat of {runs[0]}: more than the seed differs; move one of them away"
            )
    return Arm(name, runs, experiments[0], tuple(map(read_records, runs)))


def compare_arms(a: Arm, b: Arm, *, count: int = 1000, is_forced: bool = False) -> Comparison:
    """Compare A with B on the images that both were evaluated on.

    Args:
        count: number of resampled sets of images.
        is_forced: allow different settings.

    Raises:
        ConfigError: they cannot be compared, or not fairly; the message says why.
    """
    if a.runs == b.runs:
        raise ConfigError(f"{a.name} is compared with itself; choose another run")
    for other in (*a.records, *b.records):
        if protocols := protocol_differences(a.records[0], other):
            raise ConfigError(
                f"{a.name} and {b.name} cannot be compared: they were measured by different protocols, "
                f"{'; '.join(protocols)}; evaluate both by one"
            )
    differences = _differences(a, b)
    if differences and not is_forced:
        raise ConfigError(
            f"{a.name} and {b.name} cannot be compared fairly: {'; '.join(differences)}; use --anyway to compare them"
        )
    if a.experiment.data.classes != b.experiment.data.classes:
        raise ConfigError(
            f"{a.name} and {b.name} cannot be compared: their classes differ, {', '.join(a.experiment.data.classes)} "
            f"against {', '.join(b.experiment.data.classes)}"
        )
    if any(not a.records[0].is_comparable(other) for other in (*a.records, *b.records)):
        raise ConfigError(
            f"{a.name} and {b.name} cannot be compared: they were evaluated on different images or boxes; "
            "give both the same data and data.split"
        )
    metric = compared_metric(a.experiment.task)
    sign = 1.0 if metric.higher_is_better else -1.0
    scores_a, scores_b = ([sign * score(run, metric.name) for run in arm.records] for arm in (a, b))
    resampled = sign * paired_differences(a.records, b.records, metric.name, count=count)
    if len(resampled) < 2:
        raise ConfigError(f"{a.name} and {b.name} cannot be compared: their images have no objects")
    num_groups = len(set(a.records[0].group_ids.tolist()))
    return compare([scores_a], [scores_b], resampled, num_groups=num_groups, bounds=bounds_of(metric))


@dataclass(frozen=True, slots=True)
class SequenceComparison:
    """Two arms on sequences of an event camera, measured by one protocol."""

    protocol: str
    """The hash of its card."""
    test: SignFlip

    def __str__(self) -> str:
        return f"{self.test}; protocol {self.protocol}"


def compare_sequences(a: Arm, b: Arm) -> SequenceComparison | None:
    """Compare two arms that `compare_arms` accepts, sequence by sequence; None where no protocol for events says that
    groups of images are sequences.
    """
    first = a.records[0]
    if not isinstance(first, EventRecords):
        return None
    metric = compared_metric(a.experiment.task)
    differences = sequence_differences(a.records, b.records, metric.name)
    if not len(differences):
        return None
    test = sign_flip(differences if metric.higher_is_better else -differences)
    return SequenceComparison(first.card.hash, test)


def compared_metric(task: Task) -> Metric:
    """The metric that decides, or else the first that the records contain for resampled images.

    Raises:
        ConfigError: the task has no such metric.
    """
    for metric in (deciding_metric(task), *metrics_of(task)):
        if metric.is_resampleable and not metric.is_final:
            return metric
    raise ConfigError("the task has no metric that can be computed on resampled images")


MUST_MATCH = (
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
    "task",
)
"""Config paths that must be equal in a fair comparison."""


def _different_values(path: str, mine: object, theirs: object) -> list[str]:
    """What differs between two values of a config, by path."""
    if isinstance(mine, Config) and type(mine) is type(theirs):
        return [
            text
            for (name, value), (_, other) in zip(mine, theirs, strict=True)
            for text in _different_values(f"{path}.{name}", value, other)
        ]
    return [] if mine == theirs else [f"{path} is {mine} against {theirs}"]


def _differences(a: Arm, b: Arm) -> list[str]:
    found = []
    # Independent of path and encoding; None for data that were not converted to shards.
    contents = {
        (recorded_model_info(run).get("data") or {}).get("content_sha256") for run in (*a.runs, *b.runs)
    }
    for path in MUST_MATCH:
        mine, theirs = (attrgetter(path)(arm.experiment) for arm in (a, b))
        is_same_data = path == "data.source" and len(contents) == 1 and None not in contents
        if not is_same_data:
            found += _different_values(path, mine, theirs)
    if len(contents) > 1 and not any(text.startswith("data.source") for text in found):
        shown = " against ".join(sorted(str(content)[:12] for content in contents))
        found.append(f"the data have changed between the runs: content_sha256 is {shown}")
    mine, theirs = (recorded_model_info(arm.runs[0]).get("micro_batch") for arm in (a, b))
    if mine != theirs and not found:
        found.append(f"micro-batches had {mine} against {theirs} images, which affects batch norms")
    return found

"""How the AP of a trained detector degrades as one modality is corrupted or removed."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final, Literal

from raydet.data.corruptions import KINDS, NUM_SEVERITIES, STRENGTHS, Kind
from raydet.data.sources.corrupted import CorruptedSource
from raydet.engine.open_run import TrainedRun, evaluated
from raydet.errors import ConfigError
from raydet.report.compare import compared_metric
from raydet.runs.run_dir import write_atomically

CurveKind = Kind | Literal["absent"]
ABSENT: Final = "absent"
"""The modality is removed; there are no severities."""
RESULTS = "robustness.json"


@dataclass(frozen=True, slots=True)
class Curve:
    """AP under one corruption of one modality, the others being clean."""

    modality: str
    kind: CurveKind
    scores: tuple[float, ...]
    """The score at severity 0 (clean), 1, 2, ...; for `ABSENT` with the modality, and without."""

    @property
    def area(self) -> float | None:
        """Area under the scores over severity (trapezoidal rule), divided by the last severity: a score.

        >>> Curve("rgb", "blur", (0.75, 0.5, 0.25)).area
        0.5
        """
        if self.kind == ABSENT:
            return None
        inner = sum(self.scores) - (self.scores[0] + self.scores[-1]) / 2
        return inner / (len(self.scores) - 1)

    @property
    def remaining(self) -> float:
        """The area, or the score without the modality."""
        return self.scores[-1] if self.area is None else self.area

    @property
    def relative(self) -> float | None:
        """`remaining` over the clean score; None where that is 0."""
        return self.remaining / self.scores[0] if self.scores[0] else None


@dataclass(frozen=True, slots=True)
class Robustness:
    """All curves of a run; they start at the same clean score."""

    metric: str
    clean: float
    severities: int
    seed: int
    curves: tuple[Curve, ...]

    def as_json(self) -> dict[str, object]:
        """The content of robustness.json, with the strengths of the corruptions (see `STRENGTHS`)."""
        kinds = {curve.kind for curve in self.curves}
        curves = [asdict(curve) | {"area": curve.area, "relative": curve.relative} for curve in self.curves]
        return {
            "metric": self.metric,
            "clean": self.clean,
            "severities": self.severities,
            "seed": self.seed,
            "strengths": {
                kind: values[: self.severities] for kind, values in STRENGTHS.items() if kind in kinds
            },
            "curves": curves,
        }

    def write(self, directory: Path, about: Mapping[str, object]) -> None:
        """Write robustness.json and robustness.csv.

        Args:
            about: other entries of the JSON: run and images.
        """
        text = json.dumps({**about, **self.as_json()}, indent=2)
        write_atomically(directory / RESULTS, text + "\n")
        write_atomically(directory / "robustness.csv", self._as_csv())

    def _as_csv(self) -> str:
        """One row per curve; for `ABSENT`, the column of severity 1 is the score without the modality."""
        names = [f"{self.metric}_{severity}" for severity in range(self.severities + 1)]
        text = io.StringIO()
        writer = csv.DictWriter(text, ["modality", "kind", *names, "area", "relative"])
        writer.writeheader()
        for curve in self.curves:
            scores = dict(zip(names, curve.scores, strict=False))
            ends = {"area": curve.area, "relative": curve.relative}
            writer.writerow({"modality": curve.modality, "kind": curve.kind, **scores, **ends})
        return text.getvalue()


def read_robustness(directory: Path) -> Robustness | None:
    """Read what `Robustness.write` wrote; None where there is nothing, or it cannot be read."""
    try:
        content = json.loads((directory / RESULTS).read_text())
        curves = tuple(
            Curve(curve["modality"], curve["kind"], tuple(curve["scores"])) for curve in content["curves"]
        )
        return Robustness(content["metric"], content["clean"], content["severities"], content["seed"], curves)
    except (OSError, ValueError, KeyError):
        return None


def measure_robustness(
    run: TrainedRun,
    *,
    severities: int = NUM_SEVERITIES,
    kinds: Sequence[CurveKind] | None = None,
    seed: int = 0,
    tell: Callable[[str], None] = lambda line: None,
) -> Robustness:
    """Evaluate a run with one modality corrupted at a time, 84 times with three modalities.

    Only modalities that the model uses are corrupted. Boxes are not moved.

    Args:
        severities: how many, 1 to `NUM_SEVERITIES`.
        kinds: kinds of corruption; default: all that apply to a modality.
        seed: seed of the corruptions.
        tell: called with a line of progress after every evaluation.

    Raises:
        ConfigError: no corruption applies, or the images have no objects.
        DataError: an image cannot be read.
    """
    curves = [(name, kind) for name, kind in _applicable(run) if kinds is None or kind in kinds]
    if not curves:
        raise ConfigError(
            f"{', '.join(kinds or ())} does not apply to the modalities that the model uses "
            f"({', '.join(run.model.modalities)}); choose other kinds"
        )
    cases = [
        (name, kind, severity)
        for name, kind in curves
        for severity in range(1, 2 if kind == ABSENT else severities + 1)
    ]
    metric = compared_metric(run.experiment.task).name
    clean = _score(run, metric)
    tell(f"0/{len(cases)} clean: {metric} {clean:.4f}")
    scores = {curve: [clean] for curve in curves}
    for number, (name, kind, severity) in enumerate(cases, 1):
        if kind == ABSENT:
            with run.model.without(name):
                score = _score(run, metric)
        else:
            source = CorruptedSource(run.source, modality=name, kind=kind, severity=severity, seed=seed)
            score = _score(replace(run, source=source), metric)
        scores[name, kind].append(score)
        tell(f"{number}/{len(cases)} {name} {kind} {severity}: {metric} {score:.4f}")
    found = tuple(Curve(name, kind, tuple(values)) for (name, kind), values in scores.items())
    return Robustness(metric=metric, clean=clean, severities=severities, seed=seed, curves=found)


def _applicable(run: TrainedRun) -> Iterator[tuple[str, CurveKind]]:
    """The corruptions that apply to the modalities that the model uses.

    Only the second stream is shifted, because boxes are aligned with the first. A single modality cannot be absent.
    """
    first, second = run.model.rgb_input.modalities, run.model.aux_input.modalities
    for name in (*first, *second):
        yield from ((name, kind) for kind in KINDS[name])
        if first and name in second:
            yield name, "shift"
        if len((*first, *second)) > 1:
            yield name, ABSENT


def _score(run: TrainedRun, metric: str) -> float:
    score = evaluated(run).metrics[metric]
    if score is None:
        raise ConfigError(f"{run.run_dir}: its images have no objects; choose other images with --data")
    return score

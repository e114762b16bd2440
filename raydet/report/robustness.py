"""How a trained detector's AP falls as one modality's images get worse, or as the modality goes."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal

from raydet.data.corruptions import KINDS, NUM_SEVERITIES, STRENGTHS, Kind
from raydet.data.sources.corrupted import CorruptedSource
from raydet.engine.open_run import TrainedRun, evaluated
from raydet.errors import ConfigError
from raydet.runs.run_dir import write_atomically

CurveKind = Kind | Literal["absent"]
ABSENT: Final = "absent"
"""The modality is taken away altogether: there are no degrees of it."""
METRIC = "mAP"
RESULTS = "robustness.json"


@dataclass(frozen=True, slots=True)
class Curve:
    """AP of one corruption of one modality, the others as they are."""

    modality: str
    kind: CurveKind
    scores: tuple[float, ...]
    """mAP at severity 0 (as it is), 1, 2, ...; for `ABSENT` with the modality, and without."""

    @property
    def area(self) -> float | None:
        """Under the scores over the severity, by trapezoids, divided by the last severity: in 0..1, as mAP.

        >>> Curve("rgb", "blur", (0.75, 0.5, 0.25)).area
        0.5
        """
        if self.kind == ABSENT:
            return None
        inner = sum(self.scores) - (self.scores[0] + self.scores[-1]) / 2
        return inner / (len(self.scores) - 1)

    @property
    def relative(self) -> float | None:
        """What is left: the area, or the score without the modality, over the score at severity 0; None where that
        is 0 already."""
        left = self.scores[-1] if self.area is None else self.area
        return left / self.scores[0] if self.scores[0] else None


@dataclass(frozen=True, slots=True)
class Robustness:
    """All curves of a run; they begin at the same score."""

    clean: float
    severities: int
    seed: int
    curves: tuple[Curve, ...]

    def as_json(self) -> dict[str, Any]:
        """With the strengths of the corruptions (`STRENGTHS` says what they are)."""
        kinds = {curve.kind for curve in self.curves}
        curves = [asdict(curve) | {"area": curve.area, "relative": curve.relative} for curve in self.curves]
        return {
            "metric": METRIC,
            "clean": self.clean,
            "severities": self.severities,
            "seed": self.seed,
            "strengths": {
                kind: values[: self.severities] for kind, values in STRENGTHS.items() if kind in kinds
            },
            "curves": curves,
        }

    def write(self, directory: Path, about: dict[str, Any]) -> None:
        """Write robustness.json and robustness.csv.

        Args:
            about: what else the json shall say: which run, which images.
        """
        text = json.dumps(about | self.as_json(), indent=2)
        write_atomically(directory / RESULTS, text + "\n")
        write_atomically(directory / "robustness.csv", self._as_csv())

    def _as_csv(self) -> str:
        """A row per curve; for `ABSENT` the column of severity 1 is the score without the modality."""
        names = [f"{METRIC}_{severity}" for severity in range(self.severities + 1)]
        text = io.StringIO()
        writer = csv.DictWriter(text, ["modality", "kind", *names, "area", "relative"])
        writer.writeheader()
        for curve in self.curves:
            scores = dict(zip(names, curve.scores, strict=False))
            ends = {"area": curve.area, "relative": curve.relative}
            writer.writerow({"modality": curve.modality, "kind": curve.kind, **scores, **ends})
        return text.getvalue()


def read_robustness(directory: Path) -> Robustness | None:
    """What `Robustness.write` has written there; None where there is nothing, or nothing that can be read."""
    try:
        content = json.loads((directory / RESULTS).read_text())
        curves = tuple(
            Curve(curve["modality"], curve["kind"], tuple(curve["scores"])) for curve in content["curves"]
        )
        return Robustness(content["clean"], content["severities"], content["seed"], curves)
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
    """Evaluate a run again and again, with one modality spoiled each time: 84 times with three modalities.

    Only what the model reads is spoiled. Boxes stay where they are.

    Args:
        severities: 1 to `NUM_SEVERITIES`: how many of them.
        kinds: default: all that befall a modality.
        seed: of the corruptions.
        tell: takes a line after every evaluation.

    Raises:
        ConfigError: nothing is left to do, or the images hold no objects.
        DataError: an image cannot be read.
    """
    curves = [(name, kind) for name, kind in _curves_of(run) if kinds is None or kind in kinds]
    if not curves:
        raise ConfigError(
            f"{', '.join(kinds or ())}: nothing of it befalls what the model reads "
            f"({', '.join(run.detector.modalities)}); name other kinds"
        )
    cases = [
        (name, kind, severity)
        for name, kind in curves
        for severity in range(1, 2 if kind == ABSENT else severities + 1)
    ]
    clean = _score(run)
    tell(f"0/{len(cases)} as it is: {METRIC} {clean:.4f}")
    scores = {curve: [clean] for curve in curves}
    for number, (name, kind, severity) in enumerate(cases, 1):
        score = _spoiled_score(run, name, kind, severity, seed)
        scores[name, kind].append(score)
        tell(f"{number}/{len(cases)} {name} {kind} {severity}: {METRIC} {score:.4f}")
    found = tuple(Curve(name, kind, tuple(values)) for (name, kind), values in scores.items())
    return Robustness(clean=clean, severities=severities, seed=seed, curves=found)


def _curves_of(run: TrainedRun) -> Iterator[tuple[str, CurveKind]]:
    """What can befall the modalities that the model reads.

    The second stream is shifted against the first, where the boxes lie. Of a single modality nothing would be left.
    """
    first, second = run.detector.rgb_input.modalities, run.detector.aux_input.modalities
    for name in (*first, *second):
        yield from ((name, kind) for kind in KINDS[name])
        if first and name in second:
            yield name, "shift"
        if len((*first, *second)) > 1:
            yield name, ABSENT


def _spoiled_score(run: TrainedRun, name: str, kind: CurveKind, severity: int, seed: int) -> float:
    if kind == ABSENT:
        with run.detector.without(name):
            return _score(run)
    source = CorruptedSource(run.source, modality=name, kind=kind, severity=severity, seed=seed)
    return _score(replace(run, source=source))


def _score(run: TrainedRun) -> float:
    score = evaluated(run).metrics[METRIC]
    if score is None:
        raise ConfigError(f"{run.run_dir}: its images hold no objects; name other images with --data")
    return score

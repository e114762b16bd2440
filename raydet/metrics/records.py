"""Records of an evaluation: what a run's metrics can be computed from again, on any resampled set of its images.

A run writes them as `records.npz`; runs of an older raydet have `match_records.npz`.

Legend: I images, B weightings.
"""

from __future__ import annotations

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from raydet.errors import DataError
from raydet.metrics.anomaly_records import AnomalyRecords
from raydet.metrics.confusion import ConfusionRecords
from raydet.metrics.event_records import EventRecords
from raydet.metrics.matches import MatchRecords

RECORDS = "records.npz"
OLDER_RECORDS = "match_records.npz"
FINAL_RECORDS = "final_records.npz"
"""Of what was measured at the end of the run only, see `Metric.is_final`."""
KIND = "kind"

Arrays = dict[str, NDArray[np.generic]]


class Records(Protocol):
    """The records of one evaluation."""

    @property
    def image_ids(self) -> NDArray[np.str_]:
        """[I]."""

    @property
    def group_ids(self) -> NDArray[np.str_]:
        """[I]: images of one sequence share a group."""

    def scores(self, metric: str, weights_BI: NDArray[np.float64]) -> NDArray[np.float64]:
        """A metric for each weighting of the images: [B], NaN where it is undefined.

        Raises:
            ValueError: the records do not contain this metric (see `Metric.is_resampleable`).
        """

    def is_comparable(self, other: Records) -> bool:
        """Whether the other evaluation was on the same images with the same truth, in the same order,
        and by the same protocol."""

    def arrays(self) -> Arrays:
        """All contents by name, for a file."""


@dataclass(frozen=True, slots=True)
class MeanRecords:
    """Metrics that are a mean over the images, such as the accuracy of a classifier."""

    image_ids: NDArray[np.str_]
    group_ids: NDArray[np.str_]
    values: dict[str, NDArray[np.float64]]
    """[I] by metric; NaN for an image that does not count."""

    def scores(self, metric: str, weights_BI: NDArray[np.float64]) -> NDArray[np.float64]:
        """See `Records`."""
        if metric not in self.values:
            raise ValueError(f"these records hold {', '.join(self.values)}, not {metric}")
        values_I = self.values[metric]
        known_I = ~np.isnan(values_I)
        totals_B = weights_BI @ known_I
        sums_B = weights_BI @ np.where(known_I, values_I, 0.0)
        return np.where(totals_B > 0, sums_B / np.maximum(totals_B, 1e-300), np.nan)

    def is_comparable(self, other: Records) -> bool:
        """See `Records`."""
        return (
            isinstance(other, MeanRecords)
            and np.array_equal(self.image_ids, other.image_ids)
            and np.array_equal(self.group_ids, other.group_ids)
        )

    def arrays(self) -> Arrays:
        """See `Records`."""
        values = {f"values.{name}": values for name, values in self.values.items()}
        return {"image_ids": self.image_ids, "group_ids": self.group_ids, **values}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> Self:
        """Read what `arrays` gave."""
        values = {name.removeprefix("values."): x for name, x in arrays.items() if name.startswith("values.")}
        return cls(arrays["image_ids"], arrays["group_ids"], values)  # type: ignore[arg-type]


KINDS: dict[str, type[MatchRecords | EventRecords | MeanRecords | ConfusionRecords | AnomalyRecords]] = {
    "match": MatchRecords,
    "event": EventRecords,
    "mean": MeanRecords,
    "confusion": ConfusionRecords,
    "anomaly": AnomalyRecords,
}


def score(records: Records, metric: str) -> float:
    """A metric with every image counted once; NaN where it is undefined.

    Raises:
        ValueError: the records do not contain this metric.
    """
    return float(records.scores(metric, np.ones((1, len(records.image_ids))))[0])


def write_records(path: Path, records: Records) -> None:
    """Write an npz file, atomically."""
    kind = next(name for name, kind in KINDS.items() if isinstance(records, kind))
    draft = path.with_name(f".{path.name}")
    with draft.open("wb") as file:
        np.savez_compressed(file, **{KIND: np.array(kind), **records.arrays()})  # type: ignore[arg-type]
    draft.replace(path)


def has_records(run_dir: Path, *, is_final: bool = False) -> bool:
    """Whether a run has records of its last evaluation.

    Args:
        is_final: of metrics that are measured at the end of a run only.
    """
    if is_final:
        return (run_dir / FINAL_RECORDS).is_file()
    return any((run_dir / name).is_file() for name in (RECORDS, OLDER_RECORDS))


def read_records(run_dir: Path, *, is_final: bool = False) -> Records:
    """The records of a run's last evaluation, see `has_records`.

    Raises:
        DataError: there are none, or the file cannot be read.
    """
    path = run_dir / (FINAL_RECORDS if is_final else RECORDS)
    if not is_final and not path.exists() and (run_dir / OLDER_RECORDS).exists():
        path = run_dir / OLDER_RECORDS
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        kind = str(arrays.pop(KIND, "match"))
        return KINDS[kind].from_arrays(arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path} is not a file of records: {error}") from error

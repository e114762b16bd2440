"""Statistics that some anomaly scores need, in a file of the run: fitted after training, on images of their own, bound
to one checkpoint.

Both passes (see `raydet.tasks.anomaly_statistics`) go through the images in fixed blocks whose results are merged in
order, so that any number of workers gives the same bits. The second also counts the scores, for thresholds that a known
share of normal pixels reaches.
"""

from __future__ import annotations

import hashlib
import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from raydet.checkpoint.manifest import MANIFEST
from raydet.config import AnomalyScore, SplitName
from raydet.engine.open_run import TrainedRun, require_masks
from raydet.errors import ConfigError, DataError
from raydet.metrics.anomaly import ScoreHistogram
from raydet.metrics.names import ANOMALY_SCORES
from raydet.ops.class_moments import ClassMoments
from raydet.structures import IGNORE
from raydet.tasks.anomaly_maps import anomaly_map
from raydet.tasks.anomaly_statistics import (
    FEATURES_PER_CLASS,
    AnomalyStatistics,
    OutputMoments,
    moments_of_scores,
    output_moments,
)
from raydet.tasks.pixel_outputs import FEATURE_MAP, PixelOutputs, pixel_outputs

CALIBRATION = "calibration.npz"
BLOCK_IMAGES = 16
FALSE_POSITIVE_RATE = 0.05
"""Of the thresholds: the share of the calibration pixels that is called anomalous."""

Block = tuple[int, ...]
"""Indices of images in the source."""
Work = Callable[[TrainedRun, Block], Any]
Mapper = Callable[[Work, Sequence[Block]], Iterable[Any]]
"""Applies the work to every block and gives the results in the order of the blocks."""


class Card(NamedTuple):
    """What a calibration belongs to, and how it was made."""

    checkpoint: str
    checkpoint_sha256: str
    """Of its manifest, which has the hashes of its files."""
    split: str
    num_images: int
    num_pixels: int
    feature_map: int
    features_per_class: int
    false_positive_rate: float


@dataclass(frozen=True, slots=True)
class Calibration:
    """What `calibrate` found."""

    card: Card
    pixels_sha256: frozenset[str]
    """Of the images, as the model reads them: none of them must be evaluated."""
    statistics: AnomalyStatistics
    thresholds: dict[AnomalyScore, float]
    """Scores from here on are called anomalous."""

    def write(self, run_dir: Path) -> Path:
        """Write it into the directory of its run."""
        path = run_dir / CALIBRATION
        arrays = {
            "card": np.array(json.dumps(self.card._asdict())),
            "pixels_sha256": np.array(sorted(self.pixels_sha256)),
            "thresholds": np.array(json.dumps(self.thresholds)),
            **self.statistics.arrays(),
        }
        draft = path.with_name(f".{path.name}")
        with draft.open("wb") as file:
            np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
        draft.replace(path)
        return path


def calibrate(run: TrainedRun, split: SplitName, *, mapper: Mapper | None = None) -> Calibration:
    """Fit the statistics on the images of a run, see `TrainedRun.indices`.

    Args:
        split: what these images are, for the card.
        mapper: spreads the work over processes that have opened the same run; default: this process.

    Raises:
        ConfigError: the run's task is not segmentation.
        DataError: an image shows an anomaly, or has no labelled pixel; or an output is not finite.
    """
    require_masks(run)
    mapper = mapper or (lambda work, blocks: (work(run, block) for block in blocks))
    starts = range(0, len(run.indices), BLOCK_IMAGES)
    blocks = [tuple(run.indices[start : start + BLOCK_IMAGES]) for start in starts]
    hashes: list[str] = []
    channels = run.model.encoder.channels[FEATURE_MAP]
    moments = OutputMoments.empty(run.experiment.num_classes, channels)
    for part in mapper(first_pass, blocks):
        hashes += part.pixels_sha256
        moments = moments.merge(part.moments)
    statistics = AnomalyStatistics.of(moments.logits, moments.features)
    heat = ClassMoments.empty(1)
    histograms = {name: ScoreHistogram.empty() for name in ANOMALY_SCORES}
    for heat_part, found in mapper(partial(second_pass, statistics=statistics), blocks):
        heat = heat.merge(heat_part)
        histograms = {name: histogram.merge(found[name]) for name, histogram in histograms.items()}
    statistics = statistics.with_heat(heat)
    thresholds = {name: _threshold(histogram) for name, histogram in histograms.items()}
    thresholds["heat"] = (thresholds["heat"] - statistics.heat_mean) / statistics.heat_std
    card = Card(
        checkpoint=run.checkpoint.name,
        checkpoint_sha256=_sha256_of(run.checkpoint),
        split=split,
        num_images=len(run.indices),
        num_pixels=int(moments.logits.count_K.sum()),
        feature_map=FEATURE_MAP,
        features_per_class=FEATURES_PER_CLASS,
        false_positive_rate=FALSE_POSITIVE_RATE,
    )
    return Calibration(card, frozenset(hashes), statistics, thresholds)


def read_calibration(run: TrainedRun) -> Calibration | None:
    """The calibration of a run; None: it has none.

    Raises:
        ConfigError: it belongs to another checkpoint.
        DataError: it cannot be read.
    """
    path = run.run_dir / CALIBRATION
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as content:
            arrays = {name: content[name] for name in content.files}
        card = Card(**json.loads(str(arrays.pop("card"))))
        hashes = frozenset(arrays.pop("pixels_sha256").tolist())
        thresholds = json.loads(str(arrays.pop("thresholds")))
        statistics = AnomalyStatistics.from_arrays(arrays)
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise DataError(f"{path}: expected a calibration, got {error}; run raydet calibrate again") from error
    if card.checkpoint_sha256 != _sha256_of(run.checkpoint):
        raise ConfigError(
            f"{path} belongs to another checkpoint, {card.checkpoint}; the newest is {run.checkpoint.name}: run raydet "
            "calibrate again"
        )
    return Calibration(card, hashes, statistics, thresholds)


class FirstPass(NamedTuple):
    """Over a block of images."""

    pixels_sha256: list[str]
    moments: OutputMoments


def first_pass(run: TrainedRun, block: Block) -> FirstPass:
    """The moments of a block's outputs.

    Raises:
        DataError: an image shows an anomaly, or an output is not finite.
    """
    hashes: list[str] = []

    def outputs() -> Iterator[PixelOutputs]:
        for each in _outputs(run, block):
            hashes.append(each.pixels_sha256)
            yield each

    channels = run.model.encoder.channels[FEATURE_MAP]
    return FirstPass(hashes, output_moments(outputs(), run.source, channels))


def second_pass(
    run: TrainedRun, block: Block, *, statistics: AnomalyStatistics
) -> tuple[ClassMoments, dict[AnomalyScore, ScoreHistogram]]:
    """The moments of HEAT before its normalisation, and all scores, counted, of a block."""
    heat = ClassMoments.empty(1)
    histograms = {name: ScoreHistogram.empty() for name in ANOMALY_SCORES}
    for outputs in _outputs(run, block):
        counted_HW = outputs.truth_HW != IGNORE
        for name, histogram in histograms.items():
            scores_N = anomaly_map(name, outputs, statistics).cpu()[counted_HW]
            if name == "heat":
                heat = heat.merge(moments_of_scores(scores_N))
            found = ScoreHistogram.of(scores_N.numpy(), np.zeros(len(scores_N), bool))
            histograms[name] = histogram.merge(found)
    return heat, histograms


def _outputs(run: TrainedRun, block: Block) -> Iterator[PixelOutputs]:
    """Read in this process: starting others for every block would take longer than a block."""
    data = run.experiment.data.model_copy(update={"loader_threads": 0})
    experiment = run.experiment.model_copy(update={"data": data})
    return pixel_outputs(run.model, run.source, block, experiment)


def _threshold(histogram: ScoreHistogram) -> float:
    """The lowest score that at most the rate of the pixels reaches."""
    reached_P = histogram.curve().false_positive_rate_P
    thresholds_P = histogram.curve().thresholds_P
    below_P = reached_P <= FALSE_POSITIVE_RATE
    return float(thresholds_P[below_P][-1]) if below_P.any() else float(np.nextafter(thresholds_P[0], np.inf))


def _sha256_of(checkpoint: Path) -> str:
    return hashlib.sha256((checkpoint / MANIFEST).read_bytes()).hexdigest()

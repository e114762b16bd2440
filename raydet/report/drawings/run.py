"""The images of one trained run: where it did best, where it did worst, where its fusions look."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from raydet.data.transforms import eval_transform
from raydet.engine.open_run import TrainedRun, open_trained
from raydet.errors import ConfigError, DataError
from raydet.metrics.matches import MatchRecords
from raydet.report.drawings.attention import Attention, attention_maps
from raydet.report.drawings.detections import EXPLANATION, draw_detections
from raydet.report.drawings.heatmaps import draw_attention
from raydet.report.drawings.panels import as_png
from raydet.report.drawings.ranking import ImageScores, best_and_worst, image_scores
from raydet.runs.run_dir import MATCH_RECORDS
from raydet.structures import Detections, Sample, collate


@dataclass(frozen=True, slots=True)
class Drawing:
    """An image for a report."""

    name: str
    """`best-1`, ..., `worst-1`, ..., `attention`: fit for a file or an anchor."""
    title: str
    """Plain text with the image's id, whatever that holds: to be escaped in HTML, as the caption is."""
    caption: str
    png: bytes


def drawings_of_run(run_dir: Path, *, count: int = 3) -> list[Drawing]:
    """Of a finished run's evaluation the `count` best images, the `count` worst, and where its fusions look on the
    one on which it found most.

    Fewer where the run was evaluated on fewer; no attention where no fusion has any. The same bytes at every call.

    Raises:
        ConfigError: the directory holds no run, or one that has not come to its end.
        CheckpointError: the checkpoint cannot be read.
        DataError: images or match records cannot be read, or the data have changed since.
    """
    path = run_dir / MATCH_RECORDS
    if not path.is_file():
        raise ConfigError(
            f"{run_dir} has no images to show: {MATCH_RECORDS} is missing; give the run's command again to finish it"
        )
    records, run = MatchRecords.load(path), open_trained(run_dir)
    _check_same_images(records, run)
    scores = image_scores(records)
    best, worst = best_and_worst(records, count)
    drawings = [
        _detections(run, scores, position, name=f"{kind}-{rank}", place=f"{kind.capitalize()} image {rank}")
        for kind, positions in (("best", best), ("worst", worst))
        for rank, position in enumerate(positions, 1)
    ]
    most_found = max(scores.best_first(), key=lambda position: int(scores.right_I[position]))
    return drawings + _attention(run, run.val_indices[most_found])


def unread_modalities(run: TrainedRun) -> frozenset[str]:
    """What the source has and the detector is not given."""
    detector = run.detector
    return frozenset(run.source.modalities) - {
        *detector.rgb_input.num_channels,
        *detector.aux_input.num_channels,
    }


def detect_image(run: TrainedRun, index: int) -> tuple[Sample, Detections]:
    """An image of the run's source, and what its detector finds there, both in source pixels."""
    sample = run.source.read(index)
    fed = eval_transform(sample, canvas_hw=run.experiment.data.canvas_hw)
    device = next(run.detector.parameters()).device
    with torch.no_grad():
        found = run.detector(collate([fed]).to(device))[0].rescaled(fed.valid_hw, sample.source_hw)
    return sample, Detections(found.boxes_xyxy.cpu(), found.scores.cpu(), found.labels.cpu())


def _check_same_images(records: MatchRecords, run: TrainedRun) -> None:
    if records.image_ids.tolist() != [run.source.image_ids[index] for index in run.val_indices]:
        raise DataError(
            f"{run.run_dir}: its source has other images than those that it was evaluated on; bring the data back"
        )


def _detections(run: TrainedRun, scores: ImageScores, position: int, *, name: str, place: str) -> Drawing:
    sample, found = detect_image(run, run.val_indices[position])
    image = draw_detections(
        sample,
        found,
        classes=run.source.classes,
        score_threshold=scores.score_threshold,
        unread=unread_modalities(run),
        called=run.experiment.data.shown_name,
    )
    right, wrong, missed = (int(x[position]) for x in (scores.right_I, scores.wrong_I, scores.missed_I))
    caption = (
        f"{right} right, {wrong} wrong, {missed} missed: F1 {scores.f1[position]:.2f}, of all {len(scores.image_ids)} "
        f"images together {scores.overall_f1:.2f}. {EXPLANATION} Detections with a score from "
        f"{scores.score_threshold:.2f} on are drawn, {_why_threshold(scores)}. {run.experiment.data.simulation_note}"
    ).rstrip()
    title = f"{place}: {sample.image_id}"
    return Drawing(name, title, caption, as_png(image))


def _why_threshold(scores: ImageScores) -> str:
    if scores.overall_f1 == 0:
        return "but at no score is one right"
    return "where the F1 of all images together is highest"


def _attention(run: TrainedRun, index: int) -> list[Drawing]:
    attention = attention_maps(run, index)
    data = run.experiment.data
    image = draw_attention(attention, unread=unread_modalities(run), called=data.shown_name)
    if image is None:
        return []
    title = f"Where the fusion looks: {attention.sample.image_id}"
    caption = f"{_attention_caption(attention)} {data.simulation_note}".rstrip()
    return [Drawing("attention", title, caption, as_png(image))]


def _attention_caption(attention: Attention) -> str:
    layout = (
        "Above, what the detector was given. Below it, a column for each stage with a fusion of this kind, from fine "
        "to coarse. All maps share the colour scale at the right. "
    )
    if attention.stages[0].switch_below is None:
        return layout + (
            "a ← b says how much of stream b each place of stream a takes in, from 0 (nothing) to 1 (all), on average "
            "over the channels. The curves are the weights by which each stream scales its own channels, the largest "
            "first. A weight says how far a door is open, not how much goes through: the map behind it may be near "
            "zero."
        )
    return layout + (
        "A map says how much each place counts in the fused map, from 0 to 1. The strips say which channels a stream "
        "takes from the other one: those in black."
    )

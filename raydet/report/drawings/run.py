"""Drawn images of a trained run: its best and worst images, and the attention of its fusions."""

from __future__ import annotations

from pathlib import Path

import torch

from raydet.data.transforms import eval_transform
from raydet.engine.open_run import TrainedRun, open_trained
from raydet.errors import ConfigError, DataError
from raydet.metrics.confusion import ConfusionRecords
from raydet.metrics.event_records import EventRecords
from raydet.metrics.matches import MatchRecords
from raydet.metrics.records import RECORDS, has_records, read_records
from raydet.report.drawings.attention import Attention, attention_maps
from raydet.report.drawings.detections import EXPLANATION, draw_detections
from raydet.report.drawings.heatmaps import draw_attention
from raydet.report.drawings.masks import mask_drawings
from raydet.report.drawings.panels import Drawing, as_png
from raydet.report.drawings.ranking import ImageScores, best_and_worst, image_scores
from raydet.structures import Detections, Sample, collate


def drawings_of_run(run_dir: Path, *, count: int = 3) -> list[Drawing]:
    """Draw the `count` best and the `count` worst images of a finished run; of a detector also the attention of its
    fusions on the image with the most right detections, of masks the confusion of the classes.

    There are fewer if the run was evaluated on fewer, and no attention if no fusion has any. Every call gives the same
    bytes.

    Raises:
        ConfigError: the directory has no run, or the run is not finished.
        CheckpointError: the checkpoint cannot be read.
        DataError: images or records cannot be read, or the data have changed.
    """
    if not has_records(run_dir):
        raise ConfigError(
            f"{run_dir} has no images to show: {RECORDS} is missing; run its command again to finish it"
        )
    records, run = read_records(run_dir), open_trained(run_dir)
    if records.image_ids.tolist() != [run.source.image_ids[index] for index in run.indices]:
        raise DataError(
            f"{run_dir}: it was evaluated on other images than its source has now; restore the data"
        )
    match records:
        case MatchRecords():
            return _detection_drawings(run, records, count)
        case EventRecords(by_class=matches):
            return _detection_drawings(run, matches, count)
        case ConfusionRecords():
            return mask_drawings(run, records, count)
        case _:
            raise ConfigError("only detections and masks are drawn")


def _detection_drawings(run: TrainedRun, records: MatchRecords, count: int) -> list[Drawing]:
    scores = image_scores(records)
    best, worst = best_and_worst(scores.best_first(), records.group_ids, count)
    drawings = [
        _draw_detections(run, scores, index, name=f"{kind}-{rank}", rank=f"{kind.capitalize()} image {rank}")
        for kind, indices in (("best", best), ("worst", worst))
        for rank, index in enumerate(indices, 1)
    ]
    most_right = max(scores.best_first(), key=lambda index: int(scores.right_I[index]))
    return drawings + _draw_attention(run, run.indices[most_right])


def detect_image(run: TrainedRun, index: int) -> tuple[Sample, Detections]:
    """Image `index` of the run's source and its detections on the CPU, both in source pixels."""
    sample = run.source.read(index)
    fed = eval_transform(sample, canvas_hw=run.experiment.data.canvas_hw)
    device = next(run.model.parameters()).device
    with torch.no_grad():
        found = run.model(collate([fed]).to(device)).predictions[0].rescaled(fed.valid_hw, sample.source_hw)
    return sample, Detections(found.boxes_xyxy.cpu(), found.scores.cpu(), found.labels.cpu())


def _draw_detections(run: TrainedRun, scores: ImageScores, index: int, *, name: str, rank: str) -> Drawing:
    sample, found = detect_image(run, run.indices[index])
    image = draw_detections(
        sample,
        found,
        classes=run.source.classes,
        score_threshold=scores.score_threshold,
        unused=run.unused_modalities,
        display_name=run.experiment.data.shown_name,
    )
    right, wrong, missed = (int(x[index]) for x in (scores.right_I, scores.wrong_I, scores.missed_I))
    threshold, is_any_right = f"{scores.score_threshold:.2f}", scores.overall_f1 > 0
    why = (
        "where the F1 of all images together is highest"
        if is_any_right
        else "but none is right at any threshold"
    )
    caption = (
        f"{right} right, {wrong} wrong, {missed} missed: F1 {scores.f1[index]:.2f}; F1 of all {len(scores.image_ids)} "
        f"images together {scores.overall_f1:.2f}. {EXPLANATION} Detections with scores above {threshold} are drawn, "
        f"{why}. {run.experiment.data.simulation_note}"
    ).rstrip()
    return Drawing(name, f"{rank}: {sample.image_id}", caption, as_png(image))


def _draw_attention(run: TrainedRun, index: int) -> list[Drawing]:
    attention = attention_maps(run, index)
    data = run.experiment.data
    image = draw_attention(attention, unused=run.unused_modalities, display_name=data.shown_name)
    if image is None:
        return []
    title = f"Attention of the fusion: {attention.sample.image_id}"
    caption = f"{_attention_caption(attention)} {data.simulation_note}".rstrip()
    return [Drawing("attention", title, caption, as_png(image))]


def _attention_caption(attention: Attention) -> str:
    layout = (
        "Top row: the inputs of the detector. Below: a column for each stage with such a fusion, from fine to coarse. "
        "All maps share the colour scale at the right. "
    )
    if attention.stages[0].switch_below is None:
        return layout + (
            "a ← b is how much of stream b flows into stream a at each position, from 0 (nothing) to 1 (everything), "
            "averaged over the channels. The curves are the weights by which each stream scales its own channels, "
            "largest first. A weight is a gate, not a contribution: the features behind it may be near zero."
        )
    return layout + (
        "A map is the weight of each position in the fused features, from 0 to 1. The strips show in black the "
        "channels that a stream takes from the other one."
    )

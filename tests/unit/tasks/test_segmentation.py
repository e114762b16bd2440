"""Metrics of masks against scikit-learn and brute force, from the scorer's rows on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score, confusion_matrix
from torch import nn

from raydet.config import Experiment, Level, SegmentationTask
from raydet.data.loader import EvalLoader
from raydet.engine.evaluator import predict
from raydet.errors import DataError
from raydet.metrics.names import VAL_LOSS, metric_named, metrics_of
from raydet.metrics.records import read_records, score, write_records
from raydet.recipes.tiny import tiny
from raydet.structures import (
    IGNORE,
    Batch,
    Boxes,
    Carry,
    LogitMaps,
    Mask,
    MaskBatch,
    Output,
    Sample,
    Target,
    Want,
)
from raydet.tasks.base import Scores
from raydet.tasks.build import build_task
from raydet.tasks.segmentation import Segmentation, SegmentationScorer

CLASSES = ("rose", "tulip", "oak", "palm", "cat", "never")
LEVELS = (
    Level(name="kind", groups=("flower", "tree", "animal"), parents=(0, 0, 1, 1, 2, 2)),
    Level(name="realm", groups=("plant", "beast"), parents=(0, 0, 1)),
)
KIND = np.array([0, 0, 1, 1, 2, 2])
REALM = np.array([0, 0, 0, 0, 1, 1])
SIZES = ((13, 17), (16, 9), (8, 16), (16, 20), (5, 7), (11, 11), (16, 3))
CANVAS = (16, 20)


class Masks:
    """A source of masks that counts how often one is read."""

    modalities = ("rgb",)
    classes = CLASSES

    def __init__(self, masks: Sequence[NDArray[np.integer]]) -> None:
        self.masks = masks
        self.image_ids = [f"image{i}" for i in range(len(masks))]
        self.group_ids = [f"sequence{i // 2}" for i in range(len(masks))]
        self.num_read = 0

    def __len__(self) -> int:
        return len(self.masks)

    def targets(self, index: int) -> tuple[Target, tuple[int, int]]:
        self.num_read += 1
        mask = self.masks[index]
        return Mask(torch.from_numpy(mask)), (mask.shape[0], mask.shape[1])

    def read(self, index: int) -> Sample:
        """An image whose grey is its class."""
        mask = self.masks[index]
        grey = torch.from_numpy(np.where(mask == IGNORE, 0, mask * 40).astype(np.uint8))
        hw = (mask.shape[0], mask.shape[1])
        return Sample(
            image_id=self.image_ids[index],
            group_id=self.group_ids[index],
            modalities={"rgb": grey.expand(3, *hw).clone()},
            target=self.targets(index)[0],
            source_hw=hw,
            valid_hw=hw,
        )


class GreyModel(nn.Module):
    """Its logits, at half the canvas's resolution, are how near each pixel is to the grey of each class."""

    def forward(self, batch: Batch, carry: Carry, *, want: Want) -> Output:
        grey_BHW = nn.functional.avg_pool2d(batch.modalities["rgb"].float().mean(dim=1), 2)
        greys_K = 40.0 * torch.arange(len(CLASSES))
        return Output({}, LogitMaps(-(grey_BHW[:, None] - greys_K[:, None, None]).abs()), {})


def experiment(task: SegmentationTask, *, eval_batch: int = 4) -> Experiment:
    base = tiny()
    return base.model_copy(
        update={
            "task": task,
            "data": base.data.model_copy(update={"classes": CLASSES}),
            "train": base.train.model_copy(update={"eval_batch": eval_batch}),
        }
    )


def scorer_of(
    masks: Sequence[NDArray[np.integer]], task: SegmentationTask, *, eval_batch: int = 4
) -> SegmentationScorer:
    config = experiment(task, eval_batch=eval_batch)
    return Segmentation(task).scorer(config, Masks(masks), range(len(masks)))  # type: ignore[arg-type]


def batch_of(valid_hw: Sequence[tuple[int, int]], source_hw: Sequence[tuple[int, int]]) -> Batch:
    size = len(valid_hw)
    return Batch(
        modalities={"rgb": torch.zeros(size, 3, *CANVAS, dtype=torch.uint8)},
        valid_hw=torch.tensor(valid_hw),
        source_hw=torch.tensor(source_hw),
        target=MaskBatch(torch.zeros(size, *CANVAS, dtype=torch.uint8)),
        image_ids=tuple(str(i) for i in range(size)),
    )


def random_masks(seed: int) -> list[NDArray[np.uint8]]:
    """Masks with ignored pixels, one of them without any labelled one; the last class is in none."""
    generator = np.random.default_rng(seed)
    masks = [generator.integers(5, size=hw).astype(np.uint8) for hw in SIZES]
    for mask in masks:
        mask[generator.random(mask.shape) < 0.2] = IGNORE
    masks[4][:] = IGNORE
    return masks


def random_logits(seed: int, num_outputs: int, masks: Sequence[NDArray[np.uint8]]) -> list[torch.Tensor]:
    """A map per image at the canvas's size, right more often than by chance."""
    generator = np.random.default_rng([seed, 1])
    maps = generator.normal(size=(len(masks), num_outputs, *CANVAS))
    for x_NHW, mask in zip(maps, masks, strict=True):
        for label in range(5):
            x_NHW[label, : mask.shape[0], : mask.shape[1]] += 2 * (mask == label)
        x_NHW[5] -= 9
    return list(torch.from_numpy(maps.astype(np.float32)))


def rows_of(
    scorer: SegmentationScorer,
    logits: Sequence[torch.Tensor],
    masks: Sequence[NDArray[np.integer]],
    batch_size: int = 4,
) -> list[NDArray[np.float64]]:
    """The rows of each batch of images that lie unscaled on the canvas."""
    result = []
    for start in range(0, len(masks), batch_size):
        positions = list(range(len(masks)))[start : start + batch_size]
        sizes = [(masks[i].shape[0], masks[i].shape[1]) for i in positions]
        predictions = LogitMaps(torch.stack([logits[i] for i in positions]))
        result.append(scorer.rows(predictions, batch_of(sizes, sizes), positions))
    return result


def measured(
    task: SegmentationTask, seed: int = 0, num_outputs: int = len(CLASSES), *, eval_batch: int = 4
) -> tuple[Scores, list[NDArray[np.uint8]], list[torch.Tensor]]:
    masks = random_masks(seed)
    logits = random_logits(seed, num_outputs, masks)
    scorer = scorer_of(masks, task, eval_batch=eval_batch)
    return scorer.finish(np.concatenate(rows_of(scorer, logits, masks))), masks, logits


def labelled(
    masks: Sequence[NDArray[np.uint8]], logits: Sequence[torch.Tensor]
) -> tuple[NDArray[np.integer], NDArray[np.integer]]:
    """True and predicted class of all labelled pixels, of a model with outputs for classes alone."""
    truth, predicted = [], []
    for mask, x_NHW in zip(masks, logits, strict=True):
        found = x_NHW[: len(CLASSES)].argmax(dim=0).numpy()[: mask.shape[0], : mask.shape[1]]
        truth.append(mask[mask != IGNORE])
        predicted.append(found[mask != IGNORE])
    return np.concatenate(truth), np.concatenate(predicted)


def ious(truth: NDArray[np.integer], predicted: NDArray[np.integer], size: int) -> NDArray[np.float64]:
    table = confusion_matrix(truth, predicted, labels=range(size))
    right = table.diagonal().astype(float)
    union = table.sum(axis=0) + table.sum(axis=1) - right
    return np.where(union > 0, right / np.maximum(union, 1), np.nan)


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_scikit_learns(seed: int) -> None:
    scores, masks, logits = measured(SegmentationTask(), seed)
    truth, predicted = labelled(masks, logits)
    expected = ious(truth, predicted, len(CLASSES))
    assert np.isnan(expected).tolist() == [False] * 5 + [True]
    assert list(scores.per_class) == [f"IoU/{name}" for name in CLASSES]
    assert list(scores.per_class.values())[:5] == pytest.approx(expected[:5].tolist(), abs=1e-15)
    assert scores.per_class["IoU/never"] is None
    assert scores.metrics["mIoU"] == pytest.approx(np.nanmean(expected), abs=1e-15)
    assert scores.metrics["pixel_accuracy"] == pytest.approx(accuracy_score(truth, predicted), abs=1e-15)
    mean_accuracy = balanced_accuracy_score(truth, predicted)
    assert scores.metrics["mean_accuracy"] == pytest.approx(mean_accuracy, abs=1e-15)


def test_coarser_levels_equal_mapped_masks() -> None:
    scores, masks, logits = measured(SegmentationTask(levels=LEVELS))
    truth, predicted = labelled(masks, logits)
    for name, groups in (("kind", KIND), ("realm", REALM)):
        expected = ious(groups[truth], groups[predicted], groups.max() + 1)
        assert scores.metrics[f"mIoU_{name}"] == pytest.approx(np.nanmean(expected), abs=1e-15)


@pytest.mark.parametrize("num_outputs", [6, 11])
def test_scores_do_not_depend_on_batches_or_on_the_order_of_rows(num_outputs: int) -> None:
    task = SegmentationTask(levels=LEVELS)
    whole, masks, logits = measured(task, num_outputs=num_outputs)
    scorer = scorer_of(masks, task)
    for batch_size in (1, 2, 3, 7):
        rows = np.concatenate(rows_of(scorer, logits, masks, batch_size))
        found = scorer.finish(np.random.default_rng(batch_size).permutation(rows))
        assert (found.metrics, found.per_class) == (whole.metrics, whole.per_class)
        for name, values in found.records.arrays().items():
            np.testing.assert_array_equal(values, whole.records.arrays()[name])


def test_the_metrics_are_those_that_the_task_names() -> None:
    for task in (SegmentationTask(), SegmentationTask(levels=LEVELS)):
        scores, _, _ = measured(task)
        assert (*scores.metrics, VAL_LOSS.name) == tuple(metric.name for metric in metrics_of(task))


@pytest.mark.parametrize("num_outputs", [6, 11])
def test_weights_equal_repeated_images(num_outputs: int) -> None:
    task = SegmentationTask(levels=LEVELS, decoding="independent", back_off=0.4)
    scores, masks, logits = measured(task, num_outputs=num_outputs)
    weights_BI = np.random.default_rng(0).integers(4, size=(5, len(masks))).astype(float)
    weights_BI[0] = [0, 3, 0, 0, 1, 2, 0]
    metrics = [metric for metric in metrics_of(task) if metric.is_resampleable]
    metrics += [metric_named(task, f"IoU/{name}") for name in CLASSES]
    assert all(metric.is_resampleable for metric in metrics)
    for row, weights_I in enumerate(weights_BI):
        chosen = np.repeat(np.arange(len(masks)), weights_I.astype(int))
        scorer = scorer_of([masks[i] for i in chosen], task)
        rows = rows_of(scorer, [logits[i] for i in chosen], [masks[i] for i in chosen])
        repeated = scorer.finish(np.concatenate(rows)).records
        for metric in metrics:
            weighted = scores.records.scores(metric.name, weights_BI)[row]
            np.testing.assert_allclose(weighted, score(repeated, metric.name), atol=1e-15, rtol=0)


@pytest.mark.parametrize("world_size", [2, 4])
def test_workers_that_share_the_images_find_the_same(world_size: int) -> None:
    """Sources of odd sizes, larger and smaller than the canvas, from the loader to the scores."""
    generator = np.random.default_rng(0)
    sizes = [(16, 20), (33, 41), (7, 9), (64, 20), (31, 80), (12, 15), (40, 50)]
    masks = [
        generator.integers(5, size=(3, 3)).repeat(24, axis=0).repeat(30, axis=1)[:h, :w].astype(np.uint8)
        for h, w in sizes
    ]
    masks[1][:9] = IGNORE
    config = experiment(SegmentationTask(levels=LEVELS), eval_batch=2)
    data = config.data.model_copy(update={"canvas_hw": CANVAS, "loader_threads": 0})
    source = Masks(masks)

    def rows(rank: int, workers: int) -> NDArray[np.float64]:
        loader = EvalLoader(
            source,  # type: ignore[arg-type]
            range(len(masks)),
            data=data,
            batch_size=config.train.eval_batch,
            rank=rank,
            world_size=workers,
            in_step=True,
        )
        return predict(GreyModel(), loader, scorer, device=torch.device("cpu")).rows

    scorer = scorer_of(masks, SegmentationTask(levels=LEVELS), eval_batch=2)
    alone = scorer.finish(rows(0, 1))
    assert alone.metrics["pixel_accuracy"] > 0.9  # type: ignore[operator]
    shared = scorer.finish(np.concatenate([rows(rank, world_size) for rank in range(world_size)]))
    assert (shared.metrics, shared.per_class) == (alone.metrics, alone.per_class)


def test_without_images_nothing_is_defined() -> None:
    scores, masks, _ = measured(SegmentationTask(levels=LEVELS))
    for metric in metrics_of(SegmentationTask(levels=LEVELS)):
        if metric.is_resampleable:
            assert np.isnan(scores.records.scores(metric.name, np.zeros((1, len(masks))))).all()


def test_mean_over_images_leaves_out_those_without_labels() -> None:
    scores, masks, logits = measured(SegmentationTask())
    values = [
        np.nanmean(ious(*labelled([mask], [x]), len(CLASSES)))
        for mask, x in zip(masks, logits, strict=True)
        if (mask != IGNORE).any()
    ]
    assert len(values) == len(masks) - 1
    assert scores.metrics["per_image_mIoU"] == pytest.approx(np.mean(values), abs=1e-15)


def test_the_best_constant_answer_is_the_best_of_all() -> None:
    scores, masks, _ = measured(SegmentationTask())
    scorer, constant = scorer_of(masks, SegmentationTask()), []
    for label in range(len(CLASSES)):
        logits_NHW = torch.zeros(len(CLASSES), *CANVAS)
        logits_NHW[label] = 1
        rows = rows_of(scorer, [logits_NHW] * len(masks), masks)
        constant.append(scorer.finish(np.concatenate(rows)).metrics)
    for metric in ("mIoU", "pixel_accuracy", "mean_accuracy"):
        best = max(found[metric] or 0.0 for found in constant)
        assert scores.records.constant_score(metric) == pytest.approx(best, abs=1e-15)  # type: ignore[attr-defined]
    assert scores.records.constant_score("boundary_F1") is None  # type: ignore[attr-defined]


def test_mean_over_batches_changes_with_the_batch() -> None:
    found = {}
    for size in (2, 3, 7):
        scores, masks, logits = measured(SegmentationTask(), eval_batch=size)
        values = [
            np.nanmean(ious(*labelled(masks[i : i + size], logits[i : i + size]), len(CLASSES)))
            for i in range(0, len(masks), size)
        ]
        found[size] = scores.metrics["per_batch_mIoU"]
        assert found[size] == pytest.approx(np.mean(values), abs=1e-15)
    assert found[7] == scores.metrics["mIoU"]
    assert len(set(found.values())) == 3


def climbed(truth: int, node: tuple[int, int] | None) -> int:
    """Edges from the true class to its lowest ancestor that is above (or is) a node (level, id); None: the root of all
    trees."""
    parents: dict[tuple[int, int], tuple[int, int]] = {}
    for number, level in enumerate(LEVELS):
        for child, parent in enumerate(level.parents):
            parents[number, child] = (number + 1, parent)
    top = (len(LEVELS) + 1, 0)
    above = [top if node is None else node]
    while above[-1] != top:
        above.append(parents.get(above[-1], top))
    place, edges = (0, truth), 0
    while place not in above:
        place, edges = parents.get(place, top), edges + 1
    return edges


@pytest.mark.parametrize("back_off", [None, 0.5, 0.9])
def test_tree_distance_equals_climbing(back_off: float | None) -> None:
    task = SegmentationTask(levels=LEVELS, back_off=back_off)
    scores, masks, logits = measured(task)
    distances = []
    for mask, x_NHW in zip(masks, logits, strict=True):
        shares = x_NHW.double().softmax(dim=0).numpy()
        for y, x in np.argwhere(mask != IGNORE):
            pixel, best = shares[:, y, x], int(shares[:, y, x].argmax())
            groups = [best, int(KIND[best]), int(REALM[best])]
            sums = [pixel[best], pixel[groups[1] == KIND].sum(), pixel[groups[2] == REALM].sum()]
            sure = [i for i, p in enumerate(sums) if back_off is None or p >= back_off]
            node = (sure[0], groups[sure[0]]) if sure else None
            distances.append(climbed(int(mask[y, x]), node))
    wrong = [distance for distance in distances if distance]
    assert set(wrong) == {1, 2, 3}
    assert scores.metrics["tree_distance"] == pytest.approx(np.mean(wrong), abs=1e-12)
    assert scores.metrics["tree_distance_all"] == pytest.approx(np.mean(distances), abs=1e-12)


def test_violations_are_of_independent_decoding_whatever_the_task_decodes() -> None:
    rates = set()
    for decoding in ("consistent", "independent"):
        task = SegmentationTask(levels=LEVELS, decoding=decoding)
        scores, masks, logits = measured(task, num_outputs=11)
        violated, total = 0, 0
        for mask, x_NHW in zip(masks, logits, strict=True):
            fine, kind, realm = (part.argmax(dim=0).numpy() for part in x_NHW.split([6, 3, 2]))
            wrong = (KIND[fine] != kind) | (REALM[fine] != realm)
            is_labelled = mask != IGNORE
            violated += int(wrong[: mask.shape[0], : mask.shape[1]][is_labelled].sum())
            total += int(is_labelled.sum())
        assert scores.metrics["violation_rate"] == pytest.approx(violated / total, abs=1e-15)
        rates.add(scores.metrics["violation_rate"])
    assert len(rates) == 1
    assert 0.2 < rates.pop() < 0.95  # type: ignore[operator]


def test_a_model_of_classes_alone_violates_nothing() -> None:
    assert measured(SegmentationTask(levels=LEVELS))[0].metrics["violation_rate"] == 0


def test_what_was_left_open_is_wrong_on_the_levels_below_alone() -> None:
    mask = np.array([[0, 0, 2, 4]], np.uint8)
    # Sure of nothing but flower; of the wrong class of tree; of cat.
    shares = torch.tensor(
        [
            [0.45, 0.45, 0.02, 0.02],
            [0.45, 0.45, 0.02, 0.02],
            [0.02, 0.02, 0.04, 0.02],
            [0.02, 0.02, 0.88, 0.02],
            [0.03, 0.03, 0.02, 0.90],
            [0.03, 0.03, 0.02, 0.02],
        ]
    )
    logits = torch.full((6, *CANVAS), -9.0)
    logits[:, 0, :4] = shares.log()
    scorer = scorer_of([mask], SegmentationTask(levels=LEVELS, back_off=0.8))
    scores = scorer.finish(np.concatenate(rows_of(scorer, [logits], [mask])))
    assert scores.per_class == {
        "IoU/rose": 0.0,
        "IoU/tulip": None,
        "IoU/oak": 0.0,
        "IoU/palm": 0.0,
        "IoU/cat": 1.0,
        "IoU/never": None,
    }
    assert scores.metrics["pixel_accuracy"] == 0.25
    assert scores.metrics["mIoU_kind"] == 1.0
    assert scores.metrics["tree_distance"] == 1.0
    assert scores.metrics["tree_distance_all"] == 0.75


def test_perfect_logits_on_the_canvas_are_perfect_at_the_source() -> None:
    """A source twice as large as its image on the canvas, with the wildest logits in the padding."""
    small = np.random.default_rng(0).integers(5, size=(9, 20)).astype(np.uint8)
    mask = small.repeat(2, axis=0).repeat(2, axis=1)
    logits = torch.full((1, 6, *CANVAS), -9.0)
    logits[0, 5, 9:] = 1e4
    logits[0, :, :9] = 9.0 * torch.nn.functional.one_hot(torch.from_numpy(small).long(), 6).movedim(2, 0)
    scorer = scorer_of([mask], SegmentationTask(levels=LEVELS))
    scores = scorer.finish(scorer.rows(LogitMaps(logits), batch_of([(9, 20)], [(18, 40)]), [0]))
    named = ("mIoU", "mIoU_kind", "mIoU_realm", "pixel_accuracy", "mean_accuracy", "boundary_F1")
    assert {name: scores.metrics[name] for name in named} == dict.fromkeys(named, 1.0)
    assert scores.metrics["tree_distance"] is None
    assert scores.metrics["tree_distance_all"] == 0


def test_odd_sizes_and_a_stride_that_does_not_divide_the_canvas() -> None:
    """Two halves: 16 x 20 logits at 6 x 7 cells, an image of 11 x 20 from a source of 23 x 42."""
    mask = np.zeros((23, 42), np.int16)
    mask[:, 21:] = 3
    logits = torch.zeros(1, 6, 6, 7)
    columns = torch.linspace(-3, 3, 7)
    logits[0, 0], logits[0, 3] = -columns, columns
    scorer = scorer_of([mask], SegmentationTask())
    scores = scorer.finish(scorer.rows(LogitMaps(logits.bfloat16()), batch_of([(11, 20)], [(23, 42)]), [0]))
    assert scores.metrics["pixel_accuracy"] == 1.0
    assert scores.metrics["boundary_F1"] == 1.0


def test_images_without_predictions_count_as_left_open() -> None:
    """What is asked before training: is the metric that decides defined on these images?"""
    task = SegmentationTask(levels=LEVELS)
    scores = scorer_of(random_masks(0), task).finish(np.zeros((0, 5)))
    zeros = ("mIoU", "mIoU_kind", "pixel_accuracy", "boundary_F1", "per_batch_mIoU", "violation_rate")
    assert {name: scores.metrics[name] for name in zeros} == dict.fromkeys(zeros, 0.0)
    assert scores.metrics["tree_distance"] == 3
    assert [*scores.per_class.values()] == [0.0] * 5 + [None]
    unlabelled = scorer_of([np.full((4, 6), IGNORE)], task).finish(np.zeros((0, 5)))
    assert set(unlabelled.metrics.values()) == {None}


def test_a_batch_that_another_worker_has_gives_no_rows() -> None:
    masks = random_masks(0)
    scorer = scorer_of(masks, SegmentationTask())
    predictions = LogitMaps(torch.zeros(2, 6, *CANVAS))
    assert scorer.rows(predictions, batch_of([CANVAS] * 2, [CANVAS] * 2), []).shape == (0, scorer.num_columns)


def test_records_survive_their_file(tmp_path: Path) -> None:
    task = SegmentationTask(levels=LEVELS)
    records = measured(task, num_outputs=11)[0].records
    write_records(tmp_path / "records.npz", records)
    again = read_records(tmp_path)
    assert again.is_comparable(records)
    for metric in metrics_of(task):
        if metric.is_resampleable:
            assert score(again, metric.name) == score(records, metric.name)


def test_records_are_comparable_with_those_of_the_same_truth_alone() -> None:
    task = SegmentationTask(levels=LEVELS)
    scores, masks, logits = measured(task)
    hierarchical = measured(task, num_outputs=11)[0].records
    assert scores.records.is_comparable(hierarchical)
    other = [mask.copy() for mask in masks]
    other[0][other[0] == 1] = 0
    scorer = scorer_of(other, task)
    changed = scorer.finish(np.concatenate(rows_of(scorer, logits, other))).records
    assert not scores.records.is_comparable(changed)
    assert not scores.records.is_comparable(measured(SegmentationTask())[0].records)


def test_other_metrics_are_refused() -> None:
    records = measured(SegmentationTask())[0].records
    for name in ("mAP", "per_batch_mIoU", "mIoU_kind", "IoU/dog"):
        with pytest.raises(ValueError, match=f"do not contain {name}"):
            records.scores(name, np.ones((1, len(SIZES))))


def test_training_images_are_read_up_to_the_first_label() -> None:
    masks = random_masks(0)
    source = Masks([masks[4], masks[4], *masks])
    task = build_task(experiment(SegmentationTask()))
    task.check_training_images(source, range(len(source)))  # type: ignore[arg-type]
    assert source.num_read == 3
    with pytest.raises(DataError, match="labelled pixels in the training images, got 2 images without any"):
        task.check_training_images(source, [0, 1])  # type: ignore[arg-type]


def test_boxes_are_refused() -> None:
    source = Masks(random_masks(0))
    source.targets = lambda index: (Boxes(torch.zeros(0, 4), torch.zeros(0).long()), (4, 4))  # type: ignore[method-assign]
    with pytest.raises(DataError, match="image0: expected a mask, got boxes"):
        build_task(experiment(SegmentationTask())).check_training_images(source, [0])  # type: ignore[arg-type]

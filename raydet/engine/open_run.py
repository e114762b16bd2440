"""A trained run, opened again: its model with the trained weights, and its data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from raydet.checkpoint.load import load_checkpoint
from raydet.checkpoint.retention import newest_checkpoint
from raydet.config import Experiment, SegmentationTask, SplitName
from raydet.data.build import SourceConfig, adopt_source, open_source
from raydet.data.loader import EvalLoader
from raydet.data.sources.base import Source
from raydet.data.split import split_indices
from raydet.engine.averaging import take_average
from raydet.engine.barriers import yielding_busy_cores
from raydet.engine.evaluator import Evaluator, predict
from raydet.engine.optim import build_optimizer
from raydet.errors import ConfigError
from raydet.models.build import build_model
from raydet.models.carry import Streamed
from raydet.models.model import Model
from raydet.ops.class_tree import ClassTree
from raydet.parallel.collectives import World
from raydet.runs.run_dir import CONFIG
from raydet.tasks.base import Scores, Task
from raydet.tasks.build import build_task
from raydet.tasks.segmentation import predicted_ids


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """What a run directory holds."""

    run_dir: Path
    experiment: Experiment
    task: Task
    model: Model
    """In evaluation mode; with the averages of its weights if the run keeps some, as it was evaluated."""
    checkpoint: Path
    source: Source
    indices: list[int]
    """The evaluation images by their index in the source: a part of the run's split, or all of another source."""

    @property
    def unused_modalities(self) -> frozenset[str]:
        """Modalities of the source that the model does not read."""
        used = {*self.model.rgb_input.num_channels, *self.model.aux_input.num_channels}
        return frozenset(self.source.modalities) - used

    @property
    def device(self) -> torch.device:
        return next(self.model.parameters()).device


def open_trained(
    run_dir: Path,
    *,
    data: SourceConfig | None = None,
    split: SplitName = "val",
    is_labelled: bool = True,
    device: torch.device | None = None,
) -> TrainedRun:
    """Open the newest checkpoint of a run.

    Args:
        data: another source, of the same classes; default: the run's own.
        split: part of the run's own source.
        is_labelled: False: annotations of `data` are not read, and may be missing.
        device: where the model is put; default: the CPU.

    Raises:
        ConfigError: the directory holds no run, or one without a checkpoint; the other source has other classes, or
            nothing that the model reads.
        CheckpointError: the checkpoint cannot be read.
        DataError: the data cannot be opened, or have an object of a class that the run does not know.
    """
    experiment = recorded_experiment(run_dir)
    if data is not None:
        experiment = _on_other_data(experiment, data, run_dir, is_labelled)
    checkpoint = newest_checkpoint(run_dir)
    if checkpoint is None:
        raise ConfigError(f"{run_dir} has no whole checkpoint yet; give the run's command again")
    task = build_task(experiment)
    model = build_model(experiment, task.build_head)
    if not model.modalities:
        raise ConfigError(f"{run_dir} reads nothing of what --data has; name another source")
    optimizer = build_optimizer(experiment.optim, model.parameters())
    load_checkpoint(checkpoint, model=model, optimizer=optimizer, is_verified=True)
    take_average(optimizer)
    source = open_source(experiment.data, is_labelled=is_labelled or data is None)
    indices = list(range(len(source))) if data else split_indices(source, experiment.data.split)[split]
    if not indices:
        raise ConfigError(f"{run_dir} has no {split} images: its data.split has no {split}_fraction")
    model = model.to(device or torch.device("cpu")).eval()
    return TrainedRun(run_dir, experiment, task, model, checkpoint, source, indices)


def evaluated(run: TrainedRun) -> Scores:
    """The scores of the model on the evaluation images, computed as at the end of its training.

    Raises:
        DataError: an image cannot be read.
    """
    evaluator = Evaluator(run.task, run.experiment, run.source, run.indices, World(device=run.device))
    with yielding_busy_cores(torch.get_num_threads(), run.device):
        return evaluator.evaluate(run.model)[0]


def predicted(run: TrainedRun) -> NDArray[np.float64]:
    """The model's predictions on the evaluation images as rows of the task's scorer.

    Rows of a detector are those of `raydet.metrics.coco`; the first column counts along `indices`.

    Raises:
        DataError: an image cannot be read.
    """
    data, batch_size = run.experiment.data, run.experiment.train.eval_batch
    loader = EvalLoader(run.source, run.indices, data=data, batch_size=batch_size)
    scorer = run.task.scorer(run.experiment, run.source, run.indices)
    with yielding_busy_cores(torch.get_num_threads(), run.device):
        return predict(run.model, loader, scorer, device=run.device).rows


def segmented(run: TrainedRun) -> Iterator[tuple[int, Tensor]]:
    """Of each evaluation image its index in the source, and the class and the groups of its pixels on the CPU: int16
    [L, H, W] at the size of the source image, see `raydet.ops.class_tree.decode`.

    Raises:
        ConfigError: the run's task is not segmentation.
        DataError: an image cannot be read.
    """
    config = require_masks(run)
    tree = ClassTree(run.experiment.num_classes, config.levels)
    loader = EvalLoader(
        run.source, run.indices, data=run.experiment.data, batch_size=run.experiment.train.eval_batch
    )
    streamed = Streamed(run.model)
    for batch, positions in loader:
        with torch.no_grad():
            logits = streamed(batch.to(run.device), want="predictions").predictions
            for row, position in enumerate(positions):
                height, width = batch.source_hw[row].tolist()
                ids_LHW = predicted_ids(logits, row, batch, (height, width), tree=tree, config=config)
                yield run.indices[position], ids_LHW.cpu()


def require_masks(run: TrainedRun) -> SegmentationTask:
    """The task of a run that predicts masks.

    Raises:
        ConfigError: its task is another.
    """
    task = run.experiment.task
    if isinstance(task, SegmentationTask):
        return task
    raise ConfigError(f"{run.run_dir} predicts no masks: its task is {task.kind}")


def _on_other_data(
    experiment: Experiment, data: SourceConfig, run_dir: Path, is_labelled: bool
) -> Experiment:
    """What the run was trained without stays missing, whatever the other source has."""
    trained = experiment.data
    adopted = adopt_source(experiment, data, classes=trained.classes, is_labelled=is_labelled).data
    if adopted.classes != trained.classes:
        raise ConfigError(
            f"{run_dir} was trained on the classes {', '.join(trained.classes)}; --data has "
            f"{', '.join(adopted.classes)}; expected the same, in this order"
        )
    missing = tuple(dict.fromkeys((*trained.missing, *adopted.missing)))
    return experiment.model_copy(update={"data": adopted.model_copy(update={"missing": missing})})


def recorded_experiment(run_dir: Path) -> Experiment:
    """What a run was.

    Raises:
        ConfigError: the directory holds no run.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise ConfigError(f"{run_dir} is no run directory: {CONFIG} is missing")
    return Experiment.from_json(path.read_text(), where=str(path))

"""A run that has trained, opened again: its detector with the trained weights, and the data it belongs to."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from raydet.config import Experiment
from raydet.data.build import open_source
from raydet.data.sources.base import Source
from raydet.data.split import split_indices
from raydet.errors import ConfigError
from raydet.models.build import build_detector
from raydet.models.detector import Detector
from raydet.parallel.checkpoint import load_checkpoint
from raydet.train.averaging import take_average
from raydet.train.checkpoints import newest_checkpoint
from raydet.train.optim import build_optimizer
from raydet.train.record import CONFIG


@dataclass(frozen=True, slots=True)
class TrainedRun:
    """What a run directory holds."""

    run_dir: Path
    experiment: Experiment
    detector: Detector
    """In evaluation mode; with the averages of its weights where the run keeps some, as it was evaluated."""
    checkpoint: Path
    source: Source
    val_indices: list[int]
    """The pictures it was judged on, by their index in the source."""


def open_trained(run_dir: Path, *, device: torch.device | None = None) -> TrainedRun:
    """Open the newest checkpoint of a run.

    Args:
        device: of the detector; default: the CPU.

    Raises:
        ConfigError: the directory holds no run, or one without a checkpoint.
        CheckpointError: the checkpoint cannot be read.
        DataError: the data cannot be opened.
    """
    experiment = recorded_experiment(run_dir)
    checkpoint = newest_checkpoint(run_dir)
    if checkpoint is None:
        raise ConfigError(f"{run_dir} has no whole checkpoint yet; give the run's command again")
    detector = build_detector(experiment)
    optimizer = build_optimizer(experiment.optim, detector.parameters())
    load_checkpoint(checkpoint, model=detector, optimizer=optimizer, is_verified=True)
    take_average(optimizer)
    source = open_source(experiment.data)
    _, val_indices = split_indices(source, experiment.data.split)
    detector = detector.to(device or torch.device("cpu")).eval()
    return TrainedRun(run_dir, experiment, detector, checkpoint, source, val_indices)


def recorded_experiment(run_dir: Path) -> Experiment:
    """What a run was.

    Raises:
        ConfigError: the directory holds no run.
    """
    path = run_dir / CONFIG
    if not path.is_file():
        raise ConfigError(f"{run_dir} is no run directory: {CONFIG} is missing")
    return Experiment.from_json(path.read_text(), where=str(path))

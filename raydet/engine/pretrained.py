"""Pretrained weights at the start of a run, on the rank that has the weights of all."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path

from raydet.config import Experiment
from raydet.errors import ConfigError
from raydet.models.build import load_pretrained
from raydet.models.model import Model
from raydet.parallel.collectives import World, broadcast_text
from raydet.runs.run_dir import recorded_model_info

logger = logging.getLogger("raydet")

NO_PROBLEM = "none"


def start_from_pretrained(
    detector: Model, experiment: Experiment, world: World, *, run_dir: Path, is_resumed: bool
) -> Mapping[str, object] | None:
    """Load the experiment's pretrained weights on rank 0; call it on every rank, before the others receive them.

    Args:
        is_resumed: all weights will come from a checkpoint. The file may be gone by then: what was recorded of it
            is passed on.

    Returns:
        For model_info.json; None without pretrained weights, and on other ranks.

    Raises:
        ConfigError: on every rank: the file cannot be read, or does not fit the backbone.
    """
    if experiment.model.backbone.pretrained.path is None:
        return None
    if is_resumed:
        return recorded_model_info(run_dir).get("pretrained")
    info, problem = None, NO_PROBLEM
    if world.is_main:
        try:
            weights = load_pretrained(detector, experiment)
        except ConfigError as error:
            problem = str(error)
        else:
            assert weights is not None
            logger.info("pretrained weights: %s", weights.as_text())
            logger.info("licence of the pretrained weights: %s", weights.licence)
            info = weights.as_json()
    problem = broadcast_text(problem, world, source=0)
    if problem != NO_PROBLEM:
        raise ConfigError(problem)
    return info

"""Controls, which every fusion must beat: each sensor alone, on the schedule of the study."""

from __future__ import annotations

from collections.abc import Mapping

from raydet.config import Experiment, Modality
from raydet.errors import StudyError
from raydet.tune.study import ControlPhase, Study

ALONE: Mapping[str, object] = {
    "model.fusion": {"kind": "identity"},
    "model.elsewhere": {"kind": "identity"},
    "model.fusion_stages": [],
}
"""A single stream: no stage fuses."""


def present_modalities(base: Experiment) -> tuple[Modality, ...]:
    """The model's modalities that the data have, in the order of its streams."""
    names = (*base.model.rgb_modalities, *base.model.aux_modalities)
    return tuple(name for name in names if name not in base.data.missing)


def streams(base: Experiment) -> tuple[tuple[Modality, ...], tuple[Modality, ...]]:
    """The modalities of the base's RGB and auxiliary streams that the data have.

    Raises:
        StudyError: one of the streams has none, so there is nothing to fuse.
    """
    present = present_modalities(base)
    rgb = tuple(name for name in base.model.rgb_modalities if name in present)
    aux = tuple(name for name in base.model.aux_modalities if name in present)
    if not rgb or not aux:
        raise StudyError(
            f"the data lack {', '.join(base.data.missing)}: nothing is left to fuse with "
            f"{', '.join(present) or 'anything'}"
        )
    return rgb, aux


def single_sensors(base: Experiment) -> dict[str, dict[str, object]]:
    """Settings of the control of each sensor, by the sensor's name."""
    return {name: {**ALONE, "model.rgb_modalities": [name]} for name in present_modalities(base)}


def with_controls(study: Study) -> Study:
    """The study with single-sensor controls as its first phase; unchanged where it has controls, or needs none."""
    if not study.needs_controls or any(isinstance(phase, ControlPhase) for phase in study.phases):
        return study
    controls = ControlPhase(arms=single_sensors(study.base))
    return study.model_copy(update={"phases": (controls, *study.phases)})

"""Build a study from a space: with a base experiment, overrides, a choice of arms, and controls."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

from raydet.config import Experiment, MaskHead, MaskHeads, SegmentationTask, apply_overrides
from raydet.errors import StudyError
from raydet.metrics.names import deciding_metric, metric_named, metrics_of
from raydet.tune.controls import with_controls
from raydet.tune.study import Study

Space = Callable[[Experiment], Study]
"""A function that builds a study from a base experiment, as the modules of `tune_spaces` define."""


def study_of(
    space: Space,
    name: str,
    base: Experiment,
    overrides: Mapping[str, Any],
    *,
    chosen: Collection[str] = (),
    arms: Collection[str] | None = None,
) -> Study:
    """Build the study of a space, with its controls.

    Args:
        name: name of the space, for messages.
        overrides: changes to the study's base, by config path.
        chosen: other config paths that the user has set in the base; the space must not vary them.
        arms: named arms to keep, beside the controls; None: all.

    Raises:
        StudyError: an arm does not exist, or an override sets a factor that the space varies.
        ConfigError: an override is wrong, or the task does not have the space's metric.
    """
    study = space(base)
    for path in (*overrides, *chosen):
        for varied in sorted(set().union(*(factor.paths for factor in study.factors))):
            if f"{varied}.".startswith(f"{path}.") or f"{path}.".startswith(f"{varied}."):
                raise StudyError(f"{path} is set, but the space {name} varies {varied}; leave it out")
    base = apply_overrides(study.base, overrides)
    study = space(base)  # arms and controls are derived from the base
    is_set = "task.metric" in overrides or study.metric is None
    decider = deciding_metric(base.task) if is_set else metric_named(base.task, str(study.metric))
    # Trials keep their checkpoints by the metric that decides the study.
    is_default = decider == metrics_of(base.task)[0] or decider.is_final
    name_or_default = None if is_default else decider.name
    base = apply_overrides(base, {"task.metric": name_or_default})
    study = study.model_copy(update={"base": base, "metric": decider.name})
    return with_controls(study if arms is None else with_arms(study, arms))


def require_masks(base: Experiment, space: str) -> MaskHeads:
    """The base's head, for a space that compares models for masks.

    Raises:
        StudyError: it is a head for boxes.
    """
    head = base.model.head
    if isinstance(head, MaskHead):
        return head
    raise StudyError(
        f"the space {space} expects a recipe for masks, got {base.name} with the head {head.kind}; take --recipe "
        "seg_demo, or another one that `raydet recipes` lists with a head for masks"
    )


def require_anomalies(base: Experiment, space: str) -> MaskHeads:
    """The base's head, for a space that compares how well models find anomalies.

    Raises:
        StudyError: it is a head for boxes, or anomalies are not measured.
    """
    head = require_masks(base, space)
    if isinstance(base.task, SegmentationTask) and base.task.anomaly is not None:
        return head
    raise StudyError(
        f"the space {space} measures anomalies, which the recipe {base.name} does not; take --recipe anomaly_demo or "
        'streethazards_deeplabv3_resnet50, or set task.anomaly (--set \'task.anomaly={"score": "energy"}\')'
    )


def require_recurrent(base: Experiment, space: str) -> None:
    """Refuse a base without RVT's backbone, pyramid and head, for a space that changes them.

    Raises:
        StudyError: it has others.
    """
    model = base.model
    if model.backbone.kind == "rvt" and model.neck.kind == "pafpn" and model.head.kind == "yolox":
        return
    raise StudyError(
        f"the space {space} expects the backbone rvt with pafpn and yolox, got {base.name} with {model.backbone.kind}, "
        f"{model.neck.kind} and {model.head.kind}; take --recipe event_demo or rvt_tiny"
    )


def with_arms(study: Study, arms: Collection[str]) -> Study:
    """The study with a choice of its named arms, and the hypotheses that concern only those.

    Raises:
        StudyError: an arm does not exist, or a factor is left without arms.
    """
    known = [str(value) for factor in study.factors if factor.arms is not None for value in factor.values]
    for arm in arms:
        if arm not in known:
            raise StudyError(f"--arms: {study.name} has no arm {arm!r}; it has {', '.join(known) or 'none'}")
    factors = []
    for factor in study.factors:
        if factor.arms is not None:
            values = tuple(value for value in factor.values if value in arms)
            if not values:
                raise StudyError(f"--arms: must name at least one of {', '.join(map(str, factor.values))}")
            default = factor.default if factor.default in values else values[0]
            equivalent = tuple(pair for pair in factor.equivalent_values if set(pair) <= set(values))
            update = {"values": values, "default": default, "equivalent_values": equivalent}
            factor = factor.model_copy(update=update)
        factors.append(factor)
    kept = {factor.path: factor.values for factor in factors}
    hypotheses = tuple(
        hypothesis
        for hypothesis in study.hypotheses
        if all(
            set(values) <= set(kept.get(path, values))
            for claim in hypothesis.claims
            for side in (claim.better, claim.worse)
            for path, values in side.items()
        )
    )
    return study.model_copy(update={"factors": tuple(factors), "hypotheses": hypotheses})

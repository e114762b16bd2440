"""From a space to a study: over a base experiment, with the user's changes, its arms and its controls."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from raydet.config import Experiment, apply_overrides
from raydet.errors import StudyError
from raydet.metrics.names import METRIC_NAMES, MISS_RATE
from raydet.tune.controls import with_controls
from raydet.tune.study import Study, Value

Space = Callable[[Experiment], Study]
"""The study that a module of `tune_spaces` makes of a base experiment."""


def study_of(
    space: Space,
    name: str,
    base: Experiment,
    overrides: Mapping[str, Any],
    *,
    chosen: Collection[str] = (),
    arms: Collection[str] | None = None,
) -> Study:
    """The study that a space makes of a base experiment, with its controls.

    Args:
        name: of the space, for messages.
        overrides: changes to the study's base, by config path.
        chosen: other config paths that the user has set in the base, and so must not be varied.
        arms: only these of the named arms; controls stay. None: all.

    Raises:
        StudyError: there is no such arm, an override names a factor that the space varies, or its metric is better the
            lower it is.
        ConfigError: an override is wrong.
    """
    study = space(base)
    _check_metric(name, study.metric)
    for path in (*overrides, *chosen):
        for mine in sorted(set().union(*(factor.paths for factor in study.factors))):
            if _overlap(mine, path):
                raise StudyError(f"{path} is set, but the space {name} varies {mine}; leave it out")
    base = apply_overrides(study.base, overrides)
    study = space(base).model_copy(update={"base": base})  # arms and controls are made from the base
    return with_controls(study if arms is None else with_arms(study, arms))


def _check_metric(space: str, metric: str) -> None:
    if metric == MISS_RATE:
        raise StudyError(
            f"the space {space} is decided by {MISS_RATE}: lower is better, and a study wants the largest"
        )
    if metric not in METRIC_NAMES and not metric.startswith("AP/"):
        raise StudyError(
            f"the space {space} is decided by {metric!r}, which nobody measures; known: {', '.join(METRIC_NAMES)}, "
            "AP/<class>"
        )


def with_arms(study: Study, arms: Collection[str]) -> Study:
    """The study with some of its named arms only, and what can still be said of them.

    Raises:
        StudyError: it has no such arm.
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
                raise StudyError(f"--arms: of {', '.join(map(str, factor.values))} none is left; name one")
            default = factor.default if factor.default in values else values[0]
            twins = tuple(pair for pair in factor.twins if set(pair) <= set(values))
            factor = factor.model_copy(update={"values": values, "default": default, "twins": twins})
        factors.append(factor)
    kept = {factor.path: factor.values for factor in factors}
    hypotheses = tuple(
        hypothesis
        for hypothesis in study.hypotheses
        if all(_has(kept, side) for claim in hypothesis.claims for side in (claim.better, claim.worse))
    )
    return study.model_copy(update={"factors": tuple(factors), "hypotheses": hypotheses})


def _has(kept: Mapping[str, Sequence[Value]], side: Mapping[str, Sequence[Value]]) -> bool:
    return all(set(values) <= set(kept.get(path, values)) for path, values in side.items())


def _overlap(a: str, b: str) -> bool:
    """One config path is, or lies within, the other."""
    return f"{a}.".startswith(f"{b}.") or f"{b}.".startswith(f"{a}.")

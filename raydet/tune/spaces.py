"""Finding a study by name in the package `tune_spaces`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import tune_spaces
from raydet.config import Experiment, apply_overrides
from raydet.errors import StudyError
from raydet.evaluate.names import METRIC_NAMES, MISS_RATE
from raydet.tune.controls import with_controls
from raydet.tune.study import Study, Value


def space_names() -> tuple[str, ...]:
    """Names that `--space` takes."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(tune_spaces.__path__)))


def space_summary(name: str) -> str:
    """The first line of the space's documentation."""
    return (importlib.import_module(f"tune_spaces.{name}").__doc__ or "").splitlines()[0]


def load_space(
    name: str,
    base: Experiment,
    overrides: Mapping[str, Any],
    *,
    chosen: Collection[str] = (),
    arms: Collection[str] | None = None,
) -> Study:
    """The study of that name over a base experiment, with its controls.

    Args:
        name: of a module in `tune_spaces`, or the path of a Python file with a function `study` like theirs.
        overrides: changes to the study's base, by config path.
        chosen: other config paths that the user has set in the base, and so must not be varied.
        arms: only these of the named arms; controls stay. None: all.

    Raises:
        StudyError: there is no such space or arm, its file is no space, an override names a factor that it varies, or
            its metric is better the lower it is.
        ConfigError: an override is wrong.
    """
    module = _from_file(Path(name)) if name.endswith(".py") else _by_name(name)
    study: Study = module.study(base)
    _check_metric(name, study.metric)
    for path in (*overrides, *chosen):
        for mine in sorted(set().union(*(factor.paths for factor in study.factors))):
            if _overlap(mine, path):
                raise StudyError(f"{path} is set, but the space {name} varies {mine}; leave it out")
    base = apply_overrides(study.base, overrides)
    study = module.study(base).model_copy(update={"base": base})  # arms and controls are made from the base
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


def _by_name(name: str) -> ModuleType:
    if name not in space_names():
        close = difflib.get_close_matches(name, space_names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(space_names())}"
        raise StudyError(f"unknown space {name!r}; {hint}")
    return importlib.import_module(f"tune_spaces.{name}")


def _from_file(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (OSError, SyntaxError, ImportError) as error:
        raise StudyError(
            f"--space {path}: {error}; it wants a Python file with a function `study`"
        ) from error
    if not hasattr(module, "study"):
        raise StudyError(f"--space {path} has no function `study(base)`; see the modules of tune_spaces")
    return module

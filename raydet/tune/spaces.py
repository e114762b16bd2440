"""Finding a study by name in the package `tune_spaces`."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import tune_spaces
from raydet.config import Experiment, apply_overrides
from raydet.errors import StudyError
from raydet.tune.study import Study


def space_names() -> tuple[str, ...]:
    """Names that `--space` takes."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(tune_spaces.__path__)))


def space_summary(name: str) -> str:
    """The first line of the space's documentation."""
    return (importlib.import_module(f"tune_spaces.{name}").__doc__ or "").splitlines()[0]


def load_space(name: str, base: Experiment, overrides: Mapping[str, Any]) -> Study:
    """The study of that name over a base experiment.

    Args:
        overrides: changes to the study's base, by config path.

    Raises:
        StudyError: there is no such space, or an override names a factor that the study varies.
        ConfigError: an override is wrong.
    """
    if name not in space_names():
        close = difflib.get_close_matches(name, space_names(), n=1)
        hint = f"did you mean {close[0]}?" if close else f"known: {', '.join(space_names())}"
        raise StudyError(f"unknown space {name!r}; {hint}")
    study: Study = importlib.import_module(f"tune_spaces.{name}").study(base)
    for factor in study.factors:
        for path in overrides:
            if f"{factor.path}.".startswith(f"{path}."):
                raise StudyError(f"--set {path}: the space {name} varies {factor.path}; leave it out")
    return study.model_copy(update={"base": apply_overrides(study.base, overrides)})

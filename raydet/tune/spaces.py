"""Finding a study by name in the package `tune_spaces`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import tune_spaces
from raydet.config import Experiment, apply_overrides
from raydet.errors import StudyError
from raydet.evaluate.names import MISS_RATE
from raydet.tune.study import Study


def space_names() -> tuple[str, ...]:
    """Names that `--space` takes."""
    return tuple(sorted(module.name for module in pkgutil.iter_modules(tune_spaces.__path__)))


def space_summary(name: str) -> str:
    """The first line of the space's documentation."""
    return (importlib.import_module(f"tune_spaces.{name}").__doc__ or "").splitlines()[0]


def load_space(
    name: str, base: Experiment, overrides: Mapping[str, Any], *, chosen: Collection[str] = ()
) -> Study:
    """The study of that name over a base experiment.

    Args:
        name: of a module in `tune_spaces`, or the path of a Python file with a function `study` like theirs.
        overrides: changes to the study's base, by config path.
        chosen: other config paths that the user has set in the base, and so must not be varied.

    Raises:
        StudyError: there is no such space, its file is no space, an override names a factor that it varies, or its
            metric is better the lower it is.
        ConfigError: an override is wrong.
    """
    module = _from_file(Path(name)) if name.endswith(".py") else _by_name(name)
    study: Study = module.study(base)
    if study.metric == MISS_RATE:
        raise StudyError(
            f"the space {name} is decided by {MISS_RATE}: lower is better, and a study wants the largest"
        )
    for path in (*overrides, *chosen):
        for mine in sorted(set().union(*(factor.paths for factor in study.factors))):
            if _overlap(mine, path):
                raise StudyError(f"{path} is set, but the space {name} varies {mine}; leave it out")
    if any(factor.arms is not None for factor in study.factors):  # they are made from the base
        study = module.study(apply_overrides(base, overrides))
    return study.model_copy(update={"base": apply_overrides(study.base, overrides)})


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

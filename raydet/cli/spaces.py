"""Spaces by name: the modules of the package `tune_spaces`, and Python files like them."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import pkgutil
from collections.abc import Collection, Mapping
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import tune_spaces
from raydet.errors import StudyError

if TYPE_CHECKING:
    from raydet.config import Experiment
    from raydet.tune.study import Study


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
    """The study of that name over a base experiment, with its controls; see `raydet.tune.spaces.study_of`.

    Args:
        name: of a module in `tune_spaces`, or the path of a Python file with a function `study` like theirs.

    Raises:
        StudyError: there is no such space, or its file is no space.
    """
    from raydet.tune.spaces import study_of

    module = _from_file(Path(name)) if name.endswith(".py") else _by_name(name)
    return study_of(module.study, name, base, overrides, chosen=chosen, arms=arms)


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
            f"--space {path}: {error}; it must be a Python file with a function `study`"
        ) from error
    if not hasattr(module, "study"):
        raise StudyError(f"--space {path} has no function `study(base)`; see the modules of tune_spaces")
    return module

"""Python files that a user names on the command line: the only code that raydet runs from outside its packages."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from raydet.errors import ConfigError


def load_module(path: Path, *, function: str) -> ModuleType:
    """Run a Python file that must define a function.

    Raises:
        ConfigError: the file cannot be run, or has no such function.
    """
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except (OSError, SyntaxError, ImportError) as error:
        raise ConfigError(f"cannot run {path}: {error}") from error
    if not hasattr(module, function):
        raise ConfigError(f"{path} must be a Python file with a function `{function}`")
    return module

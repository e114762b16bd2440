"""The base of every config model: frozen, strict, and closed to unknown keys."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from raydet.errors import ConfigError
from raydet.redact import redact, secret_in


class Config(BaseModel):
    """A frozen value. Unknown keys, wrong types, out-of-range numbers and secrets are refused.

    A config is stored and shown in many places, and must start the same run again: what it holds cannot be struck out.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    @model_validator(mode="after")
    def _holds_no_secret(self) -> Self:
        for name, value in self:
            for text in _texts(value):
                if secret := secret_in(text):
                    raise ValueError(f"{name}: expected text without secrets, got {secret}")
        return self

    def to_json(self) -> str:
        """The config as indented JSON; `from_json` reads it back."""
        return self.model_dump_json(indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str, *, where: str) -> Self:
        """Read and validate a config.

        Args:
            text: JSON.
            where: named in the error, e.g. the file's path.

        Raises:
            ConfigError: the text is no JSON, or does not describe this config.
        """
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise ConfigError(f"{where}: {describe(error)}") from None


def describe(error: ValidationError) -> str:
    """All of pydantic's findings on one line: path, what was wrong, what came."""
    findings = []
    for finding in error.errors(include_url=False):
        path = ".".join(str(part) for part in finding["loc"]) or "config"
        came = redact(repr(finding["input"]))  # whole: what is cut off is not recognised
        came = came if len(came) <= 60 else came[:57] + "..."
        findings.append(f"{path}: {finding['msg']} (got {came})")
    return "; ".join(findings)


def _texts(value: Any) -> Iterator[str]:
    """Strings of a field; those of a config inside it have been looked at."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, tuple | list):
        for part in value:
            yield from _texts(part)
    elif isinstance(value, dict):
        for key, part in value.items():
            yield from (*_texts(key), *_texts(part))

"""The base of every config model: frozen, strict, and closed to unknown keys."""

from __future__ import annotations

import hashlib
import json
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from raydet.errors import ConfigError


class Config(BaseModel):
    """A frozen value. Unknown keys, wrong types and out-of-range numbers are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

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

    def fingerprint(self) -> str:
        """Twelve hex digits that name this config: equal configs have equal fingerprints."""
        canonical = json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def describe(error: ValidationError) -> str:
    """All of pydantic's findings on one line: path, what was wrong, what came."""
    findings = []
    for finding in error.errors(include_url=False):
        path = ".".join(str(part) for part in finding["loc"]) or "config"
        came = repr(finding["input"])
        came = came if len(came) <= 60 else came[:57] + "..."
        findings.append(f"{path}: {finding['msg']} (got {came})")
    return "; ".join(findings)

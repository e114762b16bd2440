"""The findings of the doctor: one line each, with its remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from raydet.errors import EXIT_OK, EXIT_USAGE

Level = Literal["ok", "warning", "failure"]

WIDTH_OF_LEVEL, WIDTH_OF_CHECK = 7, 13


@dataclass(frozen=True, slots=True)
class Finding:
    """The result of one check."""

    check: str
    """Name of the check, one or two words."""
    level: Level
    text: str
    remedy: str = ""
    """What to do; empty if nothing needs to be done."""

    def as_line(self) -> str:
        """One line for a terminal."""
        text = f"{self.text}; {self.remedy}" if self.remedy else self.text
        return f"{self.level:{WIDTH_OF_LEVEL}} {self.check:{WIDTH_OF_CHECK}} {' '.join(text.split())}"


def exit_code(findings: Iterable[Finding]) -> int:
    """2 if something must be fixed before a study can run; warnings do not count."""
    return EXIT_USAGE if any(finding.level == "failure" for finding in findings) else EXIT_OK


def findings_as_json(findings: Sequence[Finding]) -> dict[str, object]:
    """One object: `ok`, and the list of `findings`."""
    return {"ok": exit_code(findings) == EXIT_OK, "findings": [asdict(finding) for finding in findings]}

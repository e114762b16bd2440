"""What the doctor says: one line per finding, with its remedy."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from raydet.errors import EXIT_OK, EXIT_USAGE

Level = Literal["ok", "warning", "failure"]

WIDTH_OF_LEVEL, WIDTH_OF_CHECK = 7, 13


@dataclass(frozen=True, slots=True)
class Finding:
    """One answer."""

    check: str
    """What was asked, in a word."""
    level: Level
    text: str
    remedy: str = ""
    """What to do; empty where nothing is to be done."""

    def as_line(self) -> str:
        """For a terminal."""
        text = f"{self.text}; {self.remedy}" if self.remedy else self.text
        return f"{self.level:{WIDTH_OF_LEVEL}} {self.check:{WIDTH_OF_CHECK}} {' '.join(text.split())}"


def exit_code(findings: Iterable[Finding]) -> int:
    """2 where something has to be mended before a study can run; warnings do not count."""
    return EXIT_USAGE if any(finding.level == "failure" for finding in findings) else EXIT_OK


def in_one_object(findings: Sequence[Finding]) -> dict[str, Any]:
    """One object: `ok`, and the list of `findings`."""
    return {"ok": exit_code(findings) == EXIT_OK, "findings": [asdict(finding) for finding in findings]}

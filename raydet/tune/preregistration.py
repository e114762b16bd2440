"""What is fixed before a study's first run, so that nobody chooses it after having seen results.

The first command writes it into the journal. A later command may differ, e.g. run more seeds; that is a deviation:
it is written down, said, and stands in the report.
"""

from __future__ import annotations

import json
from typing import Any

from raydet.config import Config
from raydet.tune.cells import fresh_seeds_of, seeds_of
from raydet.tune.journal import Events, Journal
from raydet.tune.options import StudyOptions
from raydet.tune.study import ConfirmationPhase, ControlPhase, Study

PROTOCOL, DEVIATION = "protocol", "deviation"


class Protocol(Config):
    """The rules of a comparison."""

    metric: str
    seeds: tuple[int, ...]
    """Of every cell and every control."""
    fresh_seeds: tuple[int, ...]
    """Of the confirmation; none where there is none."""
    controls: tuple[str, ...]
    early_stopping: str | None
    """Rule by which phases that only choose stop runs early."""


class Deviation(Config):
    """A command under other rules than the first one."""

    time: str
    """When, UTC."""
    changes: tuple[str, ...]
    """In words."""
    num_finished: int
    """Results that were there to be seen."""


def protocol_of(study: Study, options: StudyOptions) -> Protocol:
    """The rules that a command means."""
    has_confirmation = any(isinstance(phase, ConfirmationPhase) for phase in study.phases)
    return Protocol(
        metric=study.metric,
        seeds=seeds_of(study, options.seeds),
        fresh_seeds=fresh_seeds_of(study, options.seeds) if has_confirmation else (),
        controls=tuple(
            name for phase in study.phases if isinstance(phase, ControlPhase) for name in phase.arms
        ),
        early_stopping=None if options.early_stopping is None else str(options.early_stopping),
    )


def remember_protocol(journal: Journal, protocol: Protocol) -> Deviation | None:
    """Write the rules down; the deviation if they differ from those of the command before."""
    before = newest_protocol(journal)
    rules = protocol.model_dump(mode="json")
    if before is None:
        journal.append(PROTOCOL, rules=rules)
        return None
    changes = [
        f"{name} {_listed(was)} became {_listed(rules[name])}"
        for name, was in before.model_dump(mode="json").items()
        if was != rules[name]
    ]
    if not changes:
        return None
    journal.append(DEVIATION, rules=rules, changes=changes, num_finished=len(journal.of("finished")))
    return deviations(journal)[-1]


def newest_protocol(journal: Events) -> Protocol | None:
    """The rules of the last command; None in a study older than protocols, or not begun."""
    events = [*journal.of(PROTOCOL), *journal.of(DEVIATION)]
    return Protocol.model_validate_json(json.dumps(events[-1]["rules"])) if events else None


def most_seeds(journal: Events) -> int:
    """The largest number of seeds per cell that a command has asked for; 1 in an empty journal."""
    events = [*journal.of(PROTOCOL), *journal.of(DEVIATION)]
    return max((len(entry["rules"]["seeds"]) for entry in events), default=1)


def deviations(journal: Events) -> list[Deviation]:
    """All of them, oldest first."""
    return [
        Deviation(time=entry["time"], changes=tuple(entry["changes"]), num_finished=entry["num_finished"])
        for entry in journal.of(DEVIATION)
    ]


def _listed(value: Any) -> str:
    if isinstance(value, list):
        return f"({', '.join(map(str, value))})"
    return "none" if value is None else str(value)

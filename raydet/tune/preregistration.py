"""The protocol of a study: rules fixed before the first trial, so that they cannot be chosen after seeing results.

The first command writes the protocol to the journal. A later command may differ, e.g. run more seeds: such a deviation
is recorded, printed, and shown in the report.
"""

from __future__ import annotations

import json
from typing import Any

from raydet.config import Config
from raydet.tune.cells import fresh_seeds_of, seeds_of
from raydet.tune.journal import Events, Journal
from raydet.tune.options import StudyOptions
from raydet.tune.study import ConfirmationPhase, ControlPhase, Study


class Protocol(Config):
    """The rules of a comparison."""

    metric: str
    seeds: tuple[int, ...]
    """Seeds of every cell and every control."""
    fresh_seeds: tuple[int, ...]
    """Seeds of the confirmation; empty without that phase."""
    controls: tuple[str, ...]
    early_stopping: str | None
    """The early-stopping rule of screening phases."""


class Deviation(Config):
    """A command with other rules than the command before."""

    time: str
    """Time of the command, UTC."""
    changes: tuple[str, ...]
    """One sentence per change."""
    num_finished: int
    """How many results were known by then."""


def protocol_of(study: Study, options: StudyOptions) -> Protocol:
    """The rules of a command."""
    has_confirmation = any(isinstance(phase, ConfirmationPhase) for phase in study.phases)
    controls = [phase for phase in study.phases if isinstance(phase, ControlPhase)]
    return Protocol(
        metric=study.decider.name,
        seeds=seeds_of(study, options.seeds),
        fresh_seeds=fresh_seeds_of(study, options.seeds) if has_confirmation else (),
        controls=tuple(name for phase in controls for name in phase.arms),
        early_stopping=None if options.early_stopping is None else str(options.early_stopping),
    )


def remember_protocol(journal: Journal, protocol: Protocol) -> Deviation | None:
    """Record the rules of a command; returns the deviation if they differ from those of the command before."""
    before = newest_protocol(journal)
    rules = protocol.model_dump(mode="json")
    if before is None:
        journal.append("protocol", rules=rules)
        return None
    changes = [
        f"{name} {_listed(was)} became {_listed(rules[name])}"
        for name, was in before.model_dump(mode="json").items()
        if was != rules[name]
    ]
    if not changes:
        return None
    journal.append("deviation", rules=rules, changes=changes, num_finished=len(journal.of("finished")))
    return deviations(journal)[-1]


def newest_protocol(journal: Events) -> Protocol | None:
    """The rules of the last command; None in a journal without a protocol."""
    events = [*journal.of("protocol"), *journal.of("deviation")]
    return Protocol.model_validate_json(json.dumps(events[-1]["rules"])) if events else None


def most_seeds(journal: Events) -> int:
    """The largest number of seeds per cell in any command; 1 in an empty journal."""
    events = [*journal.of("protocol"), *journal.of("deviation")]
    return max((len(event["rules"]["seeds"]) for event in events), default=1)


def deviations(journal: Events) -> list[Deviation]:
    """All deviations, oldest first."""
    return [
        Deviation(time=event.time, changes=tuple(event["changes"]), num_finished=event["num_finished"])
        for event in journal.of("deviation")
    ]


def _listed(value: Any) -> str:
    if isinstance(value, list):
        return f"({', '.join(map(str, value))})"
    return "none" if value is None else str(value)

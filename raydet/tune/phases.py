"""The decided phases of a study, and their cells and trials, by its journal."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, assert_never

from raydet.config import Experiment
from raydet.errors import StudyError
from raydet.metrics.names import deciding_metric
from raydet.tune.cells import (
    Cell,
    Trial,
    control_cells,
    fresh_seeds_of,
    grid_cells,
    promotion_cells,
    seeds_of,
    trials_of,
)
from raydet.tune.journal import Events, Journal
from raydet.tune.study import ConfirmationPhase, ControlPhase, GridPhase, Phase, PromotionPhase, Study, Value


def cells_by_phase(study: Study, journal: Events) -> dict[str, tuple[Cell, ...]]:
    """Cells of every decided phase, in order; promotion and confirmation are decided by an event in the journal."""
    decided: dict[str, tuple[Cell, ...]] = {}
    for phase in study.phases:
        known = tuple({cell.code: cell for cells in decided.values() for cell in cells}.values())
        match phase:
            case ControlPhase():
                decided[phase.name] = control_cells(phase)
            case GridPhase():
                number = sum(not cell.is_control for cell in known) + 1
                decided[phase.name] = grid_cells(study, phase, first_number=number, known=known)
            case PromotionPhase():
                promoted = promoted_values(journal, phase)
                if promoted is None:
                    break  # later phases depend on this one
                decided[phase.name] = promotion_cells(study, phase, promoted, known=known)
            case ConfirmationPhase():
                codes = confirmed_codes(journal)
                if codes is None:
                    break
                decided[phase.name] = tuple(cell for cell in known if cell.code in codes)
            case _:
                assert_never(phase)
    return decided


def trials_by_phase(study: Study, journal: Events, num_seeds: int) -> dict[str, tuple[Trial, ...]]:
    """Trials of every decided phase, in order; a trial may be in several phases."""
    seeds, fresh = seeds_of(study, num_seeds), fresh_seeds_of(study, num_seeds)
    confirmations = {phase.name for phase in study.phases if isinstance(phase, ConfirmationPhase)}
    return {
        name: (
            trials_of(study, cells, fresh, phase=name)
            if name in confirmations
            else trials_of(study, cells, seeds)
        )
        for name, cells in cells_by_phase(study, journal).items()
    }


def all_trials(study: Study, journal: Events, num_seeds: int) -> tuple[Trial, ...]:
    """Every decided trial once, in the order of the phases."""
    by_phase = trials_by_phase(study, journal, num_seeds)
    return tuple({trial.key: trial for trials in by_phase.values() for trial in trials}.values())


def num_undecided_trials(study: Study, journal: Events, num_seeds: int) -> int:
    """How many new trials the undecided phases will have."""
    decided = cells_by_phase(study, journal)
    return sum(
        _num_new_trials(study, phase, num_seeds) for phase in study.phases if phase.name not in decided
    )


def _num_new_trials(study: Study, phase: Phase, num_seeds: int) -> int:
    match phase:
        case PromotionPhase():
            # In each grid, the cell of all defaults has run in the source phase.
            cells = math.prod(len(study.factor(path).values) for path in phase.vary) - 1
            return phase.top * cells * num_seeds
        case ConfirmationPhase():
            return 2 * len(fresh_seeds_of(study, num_seeds))
        case ControlPhase() | GridPhase():
            return 0  # always decided
        case _:
            assert_never(phase)


def promoted_values(journal: Events, phase: PromotionPhase) -> list[Value] | None:
    """The values promoted to a phase, best first; None while undecided."""
    for entry in journal.of("promoted"):
        if entry["phase"] == phase.name:
            return [tuple(choice["pattern"]) for choice in entry["choices"]]
    return None


def confirmed_codes(journal: Events) -> list[str] | None:
    """Codes of the cells that run again with fresh seeds, the winner first; None while undecided."""
    return next((entry["codes"] for entry in journal.of("confirmation_selected")), None)


def recorded_study(journal: Events) -> Study | None:
    """The study that `remember_study` has written; None in an empty journal."""
    found = journal.of("study")
    if not found:
        return None
    parts = {
        "phases": [entry["settings"] for entry in journal.of("phase")],
        "hypotheses": [entry["settings"] for entry in journal.of("hypothesis")],
    }
    return Study.from_json(json.dumps(_settings_today(found[0]["settings"]) | parts), where="the journal")


def remember_study(study: Study, journal: Journal) -> None:
    """Write the settings of a study, or check that they equal those in the journal.

    Raises:
        StudyError: the journal belongs to a study with other settings; the message names them.
    """
    _remember(journal, "study", study.name, study.model_dump(mode="json", exclude={"phases", "hypotheses"}))
    for phase in study.phases:
        _remember(journal, "phase", phase.name, phase.model_dump(mode="json"))
    for hypothesis in study.hypotheses:
        # Without what is not set, so that a field that comes later changes no study that is under way.
        settings = hypothesis.model_dump(mode="json", exclude_none=True)
        _remember(journal, "hypothesis", hypothesis.name, settings)


def _remember(journal: Journal, event: str, name: str, settings: Mapping[str, object]) -> None:
    earlier = [entry["settings"] for entry in journal.of(event) if entry.name == name]
    if not earlier:
        journal.append(event, name=name, settings=settings)
        return
    if event == "study":
        earlier[0] = _settings_today(earlier[0])
    changes = list(_differences(earlier[0], settings, ""))
    if changes:
        raise StudyError(
            f"{journal.path} belongs to a study with other settings: {'; '.join(changes[:5])}; "
            "use another --storage, or the former settings"
        )


def _settings_today(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a study as this version writes them, whichever version has written them."""
    base = Experiment.from_json(json.dumps(settings["base"]), where="the journal")
    metric = settings["metric"]
    if "task" not in settings["base"] and metric == deciding_metric(base.task).name:
        metric = None  # older versions wrote the default
    return settings | {"base": base.model_dump(mode="json"), "metric": metric}


def _differences(old: Any, new: Any, path: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change
            for key in dict.fromkeys([*old, *new])
            for change in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if old == new else [f"{path} was {json.dumps(old)}, is {json.dumps(new)}"]

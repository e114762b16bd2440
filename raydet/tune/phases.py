"""What a journal has decided about a study: which phases are known, which cells they have."""

from __future__ import annotations

import json
import math
from typing import Any, assert_never

from raydet.errors import StudyError
from raydet.tune.cells import Cell, grid_cells, promotion_cells
from raydet.tune.journal import Events, Journal
from raydet.tune.study import GridPhase, PromotionPhase, Study, Value


def cells_by_phase(study: Study, journal: Events) -> dict[str, tuple[Cell, ...]]:
    """Cells of every phase that is decided, in order; a promotion is decided by its `promoted` event."""
    decided: dict[str, tuple[Cell, ...]] = {}
    for phase in study.phases:
        known = tuple({cell.code: cell for cells in decided.values() for cell in cells}.values())
        match phase:
            case GridPhase():
                decided[phase.name] = grid_cells(study, phase, first_number=len(known) + 1)
            case PromotionPhase():
                promoted = promoted_values(journal, phase)
                if promoted is None:
                    break  # later phases wait for this one
                decided[phase.name] = promotion_cells(study, phase, promoted, known=known)
            case _:
                assert_never(phase)
    return decided


def all_cells(study: Study, journal: Events) -> tuple[Cell, ...]:
    """Every decided cell once, by number."""
    cells = {cell.code: cell for cells in cells_by_phase(study, journal).values() for cell in cells}
    return tuple(sorted(cells.values(), key=lambda cell: cell.number))


def num_undecided_cells(study: Study, journal: Events) -> int:
    """How many new cells the phases that are still open will have."""
    decided = cells_by_phase(study, journal)
    total = 0
    for phase in study.phases:
        if isinstance(phase, PromotionPhase) and phase.name not in decided:
            # In each grid, the cell of all defaults has run in the source phase.
            total += phase.top * (math.prod(len(study.factor(path).values) for path in phase.vary) - 1)
    return total


def promoted_values(journal: Events, phase: PromotionPhase) -> list[Value] | None:
    """What went on into a phase, best first; None while that is open. Once written it stands."""
    decisions = [entry for entry in journal.of("promoted") if entry["phase"] == phase.name]
    return [tuple(choice["pattern"]) for choice in decisions[0]["choices"]] if decisions else None


def remember_study(study: Study, journal: Journal) -> None:
    """Write the study and its phases down, or check that the journal means the same ones.

    Raises:
        StudyError: the journal belongs to a study with other settings; they are named.
    """
    _remember(journal, "study", study.name, study.model_dump(mode="json", exclude={"phases"}))
    for phase in study.phases:
        _remember(journal, "phase", phase.name, phase.model_dump(mode="json"))


def _remember(journal: Journal, event: str, name: str, settings: dict[str, Any]) -> None:
    earlier = [entry["settings"] for entry in journal.of(event) if entry["name"] == name]
    if not earlier:
        journal.append(event, name=name, settings=settings)
        return
    changes = list(_differences(earlier[0], settings, ""))
    if changes:
        raise StudyError(
            f"{journal.path} belongs to a study with other settings: {'; '.join(changes[:5])}; "
            "use another --storage, or the settings of before"
        )


def _differences(old: Any, new: Any, path: str) -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change
            for key in dict.fromkeys([*old, *new])
            for change in _differences(old.get(key), new.get(key), f"{path}.{key}" if path else key)
        ]
    return [] if old == new else [f"{path} was {json.dumps(old)}, is {json.dumps(new)}"]

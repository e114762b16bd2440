"""The findings of a study in sentences, and what limits them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raydet.metrics.names import metrics_of
from raydet.report.analysis import Analysis
from raydet.report.findings import HypothesisResult, Outcome
from raydet.report.study import StudyResults
from raydet.stats.comparison import LEVEL, Verdict
from raydet.tune.study import PromotionPhase

MAX_NAMED = 6
"""Names in one sentence; the rest are counted."""
FEW_GROUPS = 30
LEARNT = 0.05
"""If the best mean score is less above that of a constant answer (0 where there is none), nothing has been learnt."""


def summary(analysis: Analysis) -> tuple[str, str, str]:
    """What was compared, what is supported, and what cannot be told: one sentence each."""
    return _compared(analysis), _supported(analysis), _open_questions(analysis)


def conclusions(analysis: Analysis, *, has_hypotheses: bool = True) -> list[str]:
    """The findings, most important first.

    Args:
        has_hypotheses: whether those of single hypotheses are among them.
    """
    return [
        *_learning(analysis),
        *_confirmation(analysis),
        *_fusion(analysis),
        *_baseline(analysis),
        *(map(_hypothesis, analysis.hypotheses) if has_hypotheses else ()),
        *_noise(analysis),
    ]


def _compared(analysis: Analysis) -> str:
    results = analysis.results
    cells = _count(len(results.arms), "arm")
    if results.controls or results.study.needs_controls:
        cells += f" and {_count(len(results.controls), 'control')}"
    images = f", on {_count(analysis.num_images, 'test image')}" if analysis.num_images else ""
    if images and analysis.num_groups:
        images += f" in {_count(analysis.num_groups, 'group')}"
    verb = "was" if len(results.arms) + len(results.controls) == 1 else "were"
    left = f"; {_count(len(results.unfinished), 'run')} without a result" if results.unfinished else ""
    seeds, epochs = _count(results.num_seeds, "seed"), _count(results.study.base.train.epochs, "epoch")
    return (
        f"{cells} {verb} compared by {results.study.decider.name}, with {seeds} each{images}, after "
        f"{epochs}{left}."
    )


def _supported(analysis: Analysis) -> str:
    if not _has_learnt(analysis):
        return "Found: nothing, as these models have hardly learnt anything."
    found, control = [], analysis.best_control
    if control is not None:
        rival = f"the best control {control.name} ({analysis.results.study.decider.name} {control.mean:.4f})"
        better = _arms(analysis, "A is better")
        worse = _arms(analysis, "B is better")
        if better:
            found.append(f"{_names(better)} {'beats' if len(better) == 1 else 'beat'} {rival}")
        if worse:
            found.append(f"{_names(worse)} {'is' if len(worse) == 1 else 'are'} worse than {rival}")
    pair = analysis.confirmation
    if pair is not None and pair.is_different:
        found.append(
            f"on fresh seeds, {pair.a} is {'better' if pair.verdict == 'A is better' else 'worse'} than {pair.b}"
        )
    decided: tuple[Outcome, ...] = ("supported", "refuted")
    for outcome in decided:
        if named := _of_outcome(analysis, outcome):
            found.append(f"{_hypotheses(named)} {'is' if len(named) == 1 else 'are'} {outcome}")
    return f"Found: {'; '.join(found) or 'no difference that was tested for'}."


def _open_questions(analysis: Analysis) -> str:
    if not _has_learnt(analysis):
        return "Undecided: everything; train for longer, on more images, or from pretrained weights."
    found = []
    if analysis.best_control is None and analysis.results.study.needs_controls:
        found.append("whether fusion helps at all, as there are no controls")
    if unclear := [*_arms(analysis, "not distinguishable"), *_arms(analysis, "unknown")]:
        found.append(
            f"whether {_names(unclear)} {'differs' if len(unclear) == 1 else 'differ'} from the best control"
        )
    undecided: tuple[Outcome, ...] = ("not distinguishable", "unknown", "not tested")
    for outcome in undecided:
        if named := _of_outcome(analysis, outcome):
            reason = "the noise is unknown" if outcome == "unknown" else outcome
            found.append(f"whether {_hypotheses(named)} {'holds' if len(named) == 1 else 'hold'} ({reason})")
    return f"Undecided: {'; '.join(found) or 'what holds on other data, and after other schedules'}."


def _hypotheses(names: Sequence[str]) -> str:
    return f"{'hypothesis' if len(names) == 1 else 'hypotheses'} {_names(names)}"


def _arms(analysis: Analysis, verdict: Verdict) -> list[str]:
    """Arms with a verdict against the best control, largest difference first."""
    mine = [pair for pair in analysis.against_control if pair.verdict == verdict]
    return [pair.a for pair in sorted(mine, key=lambda pair: -abs(pair.comparison.difference))]


def _of_outcome(analysis: Analysis, outcome: Outcome) -> list[str]:
    return [result.hypothesis.name for result in analysis.hypotheses if result.outcome == outcome]


def limits(analysis: Analysis) -> list[str]:
    """Caveats of the conclusions."""
    simulation = analysis.results.study.base.data.simulation_note
    return [
        *([f"{simulation} These results hold for the simulation."] if simulation else []),
        *_direction(analysis.results),
        *_seeds(analysis),
        *_images(analysis),
        *_controls(analysis),
        *_protocol(analysis.results),
    ]


def _has_learnt(analysis: Analysis) -> bool:
    """Whether the best models are better than a constant answer; where that cannot be said, they are taken to be."""
    results, decider = analysis.results, analysis.results.study.decider
    best = max((*results.controls, *results.arms), key=lambda cell: cell.utility, default=None)
    if best is None or not decider.is_resampleable or not decider.higher_is_better:
        return True
    return best.mean >= (analysis.constant or 0.0) + LEARNT


def _learning(analysis: Analysis) -> Iterator[str]:
    name, constant = analysis.results.study.decider.name, analysis.constant
    if not _has_learnt(analysis):
        best = max((*analysis.results.controls, *analysis.results.arms), key=lambda cell: cell.utility)
        yield (
            f"The best mean {name} is {best.mean:.4f} ({best.name}): these models have hardly learnt anything, and "
            "their differences say nothing. Train for longer, on more images, or from pretrained weights."
        )
    if constant is not None:
        yield f"The same class for all pixels would have {name} {constant:.4f}."


def decisions(results: StudyResults) -> list[str]:
    """The selections between phases, with their reasons."""
    found = []
    for phase in results.study.phases:
        for entry in results.events.of("promoted"):
            if isinstance(phase, PromotionPhase) and entry["phase"] == phase.name:
                for choice in entry["choices"]:
                    stages = ", ".join(map(str, choice["pattern"]))
                    found.append(f"Promoted to {phase.name}: {{{stages}}} ({choice['reason']}).")
    for entry in results.events.of("confirmation_selected"):
        pairs = zip(entry["codes"], entry["means"], strict=True)
        named = " against ".join(f"{code} (mean so far {mean:.4f})" for code, mean in pairs)
        found.append(f"Selected for confirmation with fresh seeds: {named}.")
    return found


def _hypothesis(result: HypothesisResult) -> str:
    where = ", on these images" if result.hypothesis.measure == "gap" else ""
    named = f"{result.hypothesis.name}{where}, “{result.hypothesis.text}”"
    match result.outcome:
        case "supported":
            return f"{named}: supported."
        case "refuted":
            opposite = [
                f"{claim.b} beats {claim.a}" for claim in result.claims if claim.verdict == "B is better"
            ]
            return f"{named}: refuted. The opposite was observed: {'; '.join(opposite)}."
        case "not distinguishable":
            return f"{named}: not distinguishable from chance."
        case "unknown":
            return f"{named}: cannot be tested, the noise is unknown."
        case "not tested":
            return f"{named}: not tested, runs are missing."


def _confirmation(analysis: Analysis) -> Iterator[str]:
    pair = analysis.confirmation
    if pair is None:
        return
    words = {
        "A is better": f"The winner {pair.a} is confirmed on fresh seeds: it beats the best control {pair.b}",
        "B is better": f"The winner {pair.a} is not confirmed: on fresh seeds the control {pair.b} beats it",
        "not distinguishable": f"The winner {pair.a} is not confirmed: on fresh seeds it is not distinguishable from "
        f"the best control {pair.b}",
        "unknown": f"Whether {pair.a} beats the control {pair.b} is unknown",
    }
    found = pair.comparison
    amount = f"{found.difference:+.4f}"
    if found.low is not None and found.high is not None:
        amount += f", {LEVEL:.0%} interval {found.low:+.4f} to {found.high:+.4f}"
    yield f"{words[pair.verdict]} ({amount})."


def _fusion(analysis: Analysis) -> Iterator[str]:
    control = analysis.best_control
    if control is None:
        return
    yield f"The best control is {control.name} with {analysis.results.study.decider.name} {control.mean:.4f}."
    texts = {
        "A is better": "beat it",
        "B is better": "are worse than it",
        "not distinguishable": "are not distinguishable from it",
        "unknown": "cannot be compared with it, because the noise is unknown",
    }
    for verdict, text in texts.items():
        mine = [pair for pair in analysis.against_control if pair.verdict == verdict]
        if mine:
            total = len(analysis.against_control)
            yield f"{len(mine)} of {total} arms {text}: {_names([pair.a for pair in mine])}."


def _baseline(analysis: Analysis) -> Iterator[str]:
    if analysis.baseline is None or not analysis.against_baseline:
        return
    name = analysis.baseline.name
    name = "baseline" if name == "baseline" else f"baseline {name}"
    better = [pair.a for pair in analysis.against_baseline if pair.verdict == "A is better"]
    worse = [pair.a for pair in analysis.against_baseline if pair.verdict == "B is better"]
    known = any(pair.verdict != "unknown" for pair in analysis.against_baseline)
    if better:
        yield f"Better than the {name}: {_names(better)}."
    elif known:
        yield f"No arm is distinguishably better than the {name}."
    if worse:
        yield f"Worse than the {name}: {_names(worse)}."


def _noise(analysis: Analysis) -> Iterator[str]:
    noise = analysis.noise
    if noise.range is not None:
        low, high = noise.range
        yield (
            f"The noise differs between cells: the standard deviation of a score over repeated trainings is {low:.4f} "
            f"to {high:.4f}, a wider range than chance explains. Each comparison uses the spread of its own runs."
        )
    if noise.spread is not None:
        num_seeds = analysis.results.num_seeds
        yield (
            f"The standard deviation of a score over repeated trainings is {noise.spread.sd:.4f} "
            f"({_count(noise.spread.degrees, 'degree')} of freedom): with {_count(num_seeds, 'seed')} per cell, "
            f"differences below {noise.smallest_difference(num_seeds):.4f} are not distinguishable from noise, even "
            "without the noise of the images."
        )
    pairs = _count(len(noise.equivalent_pairs), "pair")
    different = [pair.a for pair in noise.equivalent_pairs if pair.is_different]
    if different:
        yield (
            f"Of {pairs} of equivalent cells, {len(different)} came out different, {_names(different)}: something "
            "other than chance differs there, or the spread is underestimated. Do not trust small differences in this "
            "study."
        )
    elif noise.equivalent_pairs and all(p.verdict == "not distinguishable" for p in noise.equivalent_pairs):
        yield f"Of {pairs} of equivalent cells, none came out different, as it should be."


def _direction(results: StudyResults) -> Iterator[str]:
    if not results.study.decider.higher_is_better:
        yield (
            f"{results.study.decider.name} is better when it is lower: differences are given so that a positive one is "
            "better."
        )


def _seeds(analysis: Analysis) -> Iterator[str]:
    if analysis.results.num_seeds > 1:
        return
    if analysis.noise.spread is None:
        yield "Each cell ran once, and nothing was repeated: differences cannot be tested. Run with --seeds 3."
    else:
        yield "Each cell ran once; the noise is estimated from equivalent cells, or from the confirmation."


def _images(analysis: Analysis) -> Iterator[str]:
    decider = analysis.results.study.decider
    if not decider.is_resampleable:
        known = [
            metric.name for metric in metrics_of(analysis.results.study.base.task) if metric.is_resampleable
        ]
        yield (
            f"The noise of the test images is known for {', '.join(known)}, not for {decider.name}: all results hold "
            "for these images only."
        )
    elif analysis.without_images:
        yield (
            "Records of the evaluation are missing, or are of other images or another protocol, for "
            f"{_names(analysis.without_images)}: their results hold for these images only."
        )
    elif analysis.num_groups == 1:
        yield (
            "All test images are of one group (one sequence): the noise of images is unknown, so no cells can be "
            "distinguished."
        )
    elif analysis.num_groups < FEW_GROUPS:
        yield (
            f"The test images come from only {_count(analysis.num_groups, 'independent group')}: on other images the "
            f"numbers may vary as much as the {LEVEL:.0%} intervals say."
        )


def _controls(analysis: Analysis) -> Iterator[str]:
    if not analysis.results.controls:
        if analysis.results.study.needs_controls:
            yield "There are no controls: fusion is not compared with a single sensor."
    elif len(analysis.results.controls) > 1:
        yield "The best of several controls is biased upwards by selection, which counts against the arms."
    for phase in analysis.results.study.phases:
        if isinstance(phase, PromotionPhase) and analysis.results.cells.get(phase.name):
            yield (
                f"{phase.name} reuses the runs by which its patterns were selected: this selection bias slightly "
                "favours the default values of its factors."
            )


def _protocol(results: StudyResults) -> Iterator[str]:
    late = results.late_hypotheses
    for count in dict.fromkeys(late.values()):
        mine = _names([name for name, seen in late.items() if seen == count])
        yield f"{mine}: registered after {_count(count, 'run')} had finished."
    for deviation in results.deviations:
        count = deviation.num_finished
        seen = f" after {_count(count, 'result')} could be seen" if count else ""
        yield f"The protocol was changed{seen} ({deviation.time[:16]} UTC): {'; '.join(deviation.changes)}."
    by_status: dict[str, list[str]] = {}
    for record in results.unfinished:
        by_status.setdefault(record.status, []).append(record.trial.name)
    words = {"failed": "failed", "pending": "have not run", "stopped": "were stopped early"}
    for status, names in by_status.items():
        yield f"{_count(len(names), 'run')} {words[status]}: {_names(names)}."


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MAX_NAMED])
    return shown if len(names) <= MAX_NAMED else f"{shown} and {len(names) - MAX_NAMED} more"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

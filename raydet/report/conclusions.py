"""A study's outcome in plain sentences, and first of all what cannot be told."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raydet.report.analysis import Analysis
from raydet.report.findings import Noise, Tested, Versus
from raydet.report.study import THRESHOLDS, StudyResults
from raydet.stats.comparison import LEVEL, MOST_SEEDS, Spread
from raydet.tune.study import PromotionPhase

MOST_NAMED = 6
"""Names in one sentence; the rest is counted."""
FEW_GROUPS = 30
LEARNT = 0.05
"""Of a score: detectors whose best mean is below have hardly learnt to find anything."""


def conclusions(analysis: Analysis) -> list[str]:
    """What a reader should take away, most important first."""
    return [
        *_learning(analysis.results),
        *_confirmation(analysis),
        *_fusion(analysis),
        *_baseline(analysis),
        *(hypothesis_sentence(tested) for tested in analysis.hypotheses),
        *_noise(analysis),
    ]


def limits(analysis: Analysis) -> list[str]:
    """What weakens the conclusions."""
    return [
        *_simulation(analysis),
        *_seeds(analysis),
        *_images(analysis),
        *_controls(analysis),
        *_protocol(analysis.results),
    ]


def _learning(results: StudyResults) -> Iterator[str]:
    best = max((*results.controls, *results.arms), key=lambda cell: cell.mean, default=None)
    if results.study.metric in THRESHOLDS and best is not None and best.mean < LEARNT:
        yield (
            f"The best mean {results.study.metric} is {best.mean:.4f} ({best.name}): these detectors have hardly "
            "learnt to find anything, and what is said of their differences says nothing about fusion. Train for "
            "longer, on more images, or from pretrained weights."
        )


def _simulation(analysis: Analysis) -> Iterator[str]:
    note = analysis.results.study.base.data.simulation_note
    if note:
        yield f"{note} What is said about it here holds for the simulation."


def decisions(results: StudyResults) -> list[str]:
    """What was chosen between phases, and why."""
    found = []
    for phase in results.study.phases:
        for entry in results.events.of("promoted"):
            if isinstance(phase, PromotionPhase) and entry["phase"] == phase.name:
                for choice in entry["choices"]:
                    stages = ", ".join(map(str, choice["pattern"]))
                    found.append(f"Into {phase.name} went {{{stages}}}: {choice['reason']}.")
    for entry in results.events.of("confirming"):
        pairs = zip(entry["codes"], entry["means"], strict=True)
        named = " against ".join(f"{code} (mean so far {mean:.4f})" for code, mean in pairs)
        found.append(f"Chosen to run again with fresh seeds: {named}.")
    return found


def hypothesis_sentence(tested: Tested) -> str:
    """The hypothesis with its verdict."""
    where = ", on these images" if tested.hypothesis.measure == "gap" else ""
    named = f"{tested.hypothesis.name}{where}, “{tested.hypothesis.text}”"
    match tested.answer:
        case "supported":
            return f"{named}: supported."
        case "refuted":
            against = [claim for claim in tested.claims if claim.verdict == "B is better"]
            return f"{named}: refuted. {_against(against)}"
        case "not distinguishable":
            return f"{named}: not distinguishable from chance.{_seeds_for(tested)}"
        case "unknown":
            return f"{named}: cannot be judged, the noise is not known."
        case "not tested":
            return f"{named}: not tested, runs for it are missing."


def _against(claims: Sequence[Versus]) -> str:
    return f"The opposite was seen: {'; '.join(f'{claim.b} beats {claim.a}' for claim in claims)}."


def _seeds_for(tested: Tested) -> str:
    if tested.hypothesis.measure == "gap":
        return ""
    open_claims = [claim for claim in tested.claims if claim.verdict == "not distinguishable"]
    needed = [claim.comparison.seeds_needed for claim in open_claims]
    known = [count for count in needed if count is not None]
    if len(known) < len(needed):
        return f" It would take more than {MOST_SEEDS} seeds, or more images."
    return f" Differences of the size seen would take about {max(known)} seeds." if known else ""


def _confirmation(analysis: Analysis) -> Iterator[str]:
    found = analysis.confirmation
    if found is None:
        return
    words = {
        "A is better": f"The winner {found.a} is confirmed on fresh seeds: it beats the best control {found.b}",
        "B is better": f"The winner {found.a} is not confirmed: on fresh seeds the control {found.b} beats it",
        "not distinguishable": f"The winner {found.a} is not confirmed: on fresh seeds it cannot be told from the best "
        f"control {found.b}",
        "unknown": f"Whether {found.a} beats the control {found.b} cannot be judged",
    }
    yield f"{words[found.verdict]} ({amount(found)})."


def _fusion(analysis: Analysis) -> Iterator[str]:
    control = analysis.best_control
    if control is None:
        return
    yield f"The best control is {control.name} with {analysis.results.study.metric} {control.mean:.4f}."
    texts = {
        "A is better": "beat it",
        "B is better": "fall below it",
        "not distinguishable": "cannot be told from it",
        "unknown": "cannot be compared with it, as the noise is not known",
    }
    for verdict, text in texts.items():
        mine = [versus for versus in analysis.against_control if versus.verdict == verdict]
        if mine:
            total = len(analysis.against_control)
            yield f"{len(mine)} of {total} arms {text}: {_names([versus.a for versus in mine])}."


def _baseline(analysis: Analysis) -> Iterator[str]:
    if analysis.baseline is None or not analysis.against_baseline:
        return
    name = analysis.baseline.name
    name = "baseline" if name == "baseline" else f"baseline {name}"
    better = [versus.a for versus in analysis.against_baseline if versus.verdict == "A is better"]
    worse = [versus.a for versus in analysis.against_baseline if versus.verdict == "B is better"]
    known = any(versus.verdict != "unknown" for versus in analysis.against_baseline)
    if better:
        yield f"Better than the {name}: {_names(better)}."
    elif known:
        yield f"No arm is better than the {name} by more than chance."
    if worse:
        yield f"Worse than the {name}: {_names(worse)}."


def _noise(analysis: Analysis) -> Iterator[str]:
    noise = analysis.noise
    if noise.range is not None:
        low, high = noise.range
        yield (
            f"Cells are not equally noisy: from one training to the next a score has a standard deviation of {low:.4f} "
            f"to {high:.4f}, more unlike than chance makes it. Each comparison is judged by the spread of its own runs."
        )
    if noise.spread is not None:
        yield _floor(analysis, noise.spread)
    if noise.twins:
        yield from _twins(noise)


def _floor(analysis: Analysis, spread: Spread) -> str:
    num_seeds = analysis.results.num_seeds
    floor = analysis.noise.smallest_difference(num_seeds)
    return (
        f"From one training of a detector to the next its score has a standard deviation of {spread.sd:.4f} "
        f"({spread.degrees} degrees of freedom): with {_count(num_seeds, 'seed')} per cell, differences below "
        f"{floor:.4f} cannot be told from noise, other images not even counted."
    )


def _twins(noise: Noise) -> Iterator[str]:
    apart, pairs = noise.twins_apart, _count(len(noise.twins), "pair")
    if apart:
        yield (
            f"Of {pairs} of cells that are the same function, {len(apart)} came out different, "
            f"{_names([versus.a for versus in apart])}: something other than chance differs there, or the spread "
            "is understated. Do not trust small differences in this study."
        )
    elif all(versus.verdict == "not distinguishable" for versus in noise.twins):
        yield f"Of {pairs} of cells that are the same function none came out different, as it should be."


def _seeds(analysis: Analysis) -> Iterator[str]:
    num_seeds = analysis.results.num_seeds
    if num_seeds > 1:
        return
    if analysis.noise.spread is None:
        yield "Each cell ran once, and nothing repeats anything: no difference can be judged. Run with --seeds 3."
    else:
        yield "Each cell ran once; the noise is known from cells that are the same function, or from the confirmation."


def _images(analysis: Analysis) -> Iterator[str]:
    if analysis.results.study.metric not in THRESHOLDS:
        yield (
            f"The noise of the test images is known for {', '.join(THRESHOLDS)}, not for "
            f"{analysis.results.study.metric}: what is said holds for these images only."
        )
    elif analysis.without_images:
        yield (
            f"Match records are missing, or of other images, for {_names(analysis.without_images)}: what is said "
            "of these holds for these images only."
        )
    elif analysis.num_groups == 1:
        yield (
            "The test images are one group, of one sequence: nothing is known of the noise of images, so nothing "
            "can be told apart."
        )
    elif analysis.num_groups < FEW_GROUPS:
        yield (
            f"The test images come from {_count(analysis.num_groups, 'independent group')}: on others the numbers "
            f"may move as far as the intervals say ({LEVEL:.0%})."
        )


def _controls(analysis: Analysis) -> Iterator[str]:
    if not analysis.results.controls:
        yield "There are no controls: nothing is said of fusion against a single sensor."
    elif len(analysis.results.controls) > 1:
        yield "The best of several controls is a little too good by its luck, which counts against the arms."
    for phase in analysis.results.study.phases:
        if isinstance(phase, PromotionPhase) and analysis.results.cells.get(phase.name):
            yield (
                f"{phase.name} takes over the runs by which its patterns were chosen: their luck speaks a little for "
                "the default values of its factors."
            )


def _protocol(results: StudyResults) -> Iterator[str]:
    late = results.late_hypotheses
    for count in dict.fromkeys(late.values()):
        mine = _names([name for name, seen in late.items() if seen == count])
        yield f"{mine}: written down when {_count(count, 'run')} had finished already."
    for deviation in results.deviations:
        seen = (
            f" after {_count(deviation.num_finished, 'result')} could be seen"
            if deviation.num_finished
            else ""
        )
        yield f"The rules were changed{seen} ({deviation.time[:16]} UTC): {'; '.join(deviation.changes)}."
    by_status: dict[str, list[str]] = {}
    for record in results.unfinished:
        by_status.setdefault(record.status, []).append(record.trial.name)
    words = {"failed": "failed", "pending": "have not run", "stopped": "were stopped early"}
    for status, names in by_status.items():
        yield f"{_count(len(names), 'run')} {words[status]}: {_names(names)}."


def amount(versus: Versus) -> str:
    """`+0.012, 95 % interval +0.004 to +0.020`."""
    found = versus.comparison
    if found.low is None or found.high is None:
        return f"{found.difference:+.4f}"
    return f"{found.difference:+.4f}, {LEVEL:.0%} interval {found.low:+.4f} to {found.high:+.4f}"


def _names(names: Sequence[str]) -> str:
    shown = ", ".join(names[:MOST_NAMED])
    return shown if len(names) <= MOST_NAMED else f"{shown} and {len(names) - MOST_NAMED} more"


def _count(count: int, noun: str) -> str:
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"

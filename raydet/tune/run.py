"""Run a study: phase after phase, only what the journal does not have.

The journal is the truth, Ray Tune runs the trials, and this process alone writes the journal, the summary and the
tracker.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, assert_never

from raydet.config import apply_overrides
from raydet.cpu import refuse_slow_bf16
from raydet.data.sampler import batch_plan
from raydet.errors import EXIT_BUDGET_SPENT, EXIT_OK, EXIT_TRIALS_FAILED, StudyError
from raydet.redact import RedactingFormatter
from raydet.runs.run_dir import finished_results
from raydet.runs.terminal import own_terminal
from raydet.track.base import Tracker
from raydet.track.runs import open_tracker
from raydet.tune.budget import Meter
from raydet.tune.cells import Trial, trial_directory
from raydet.tune.check import check_apart
from raydet.tune.early_stopping import EarlyStopping, Screening
from raydet.tune.journal import Journal, read_journal
from raydet.tune.options import StudyOptions
from raydet.tune.phases import (
    all_trials,
    cells_by_phase,
    confirmed_codes,
    num_undecided_trials,
    promoted_values,
    remember_study,
    trials_by_phase,
)
from raydet.tune.preregistration import protocol_of, remember_protocol
from raydet.tune.select import promote
from raydet.tune.study import (
    ConfirmationPhase,
    ControlPhase,
    GridPhase,
    Phase,
    PromotionPhase,
    Study,
    is_screening,
)
from raydet.tune.summary import Summary
from raydet.tune.trial_listener import PhaseBook
from raydet.tune.trial_status import (
    TrialRecord,
    candidates_of,
    contenders,
    ranking_table,
    records_of,
)
from raydet.tune.view import StudyView

logger = logging.getLogger("raydet")


def plan_study(study: Study, options: StudyOptions) -> dict[str, Any]:
    """What `run_study` would run; nothing is written.

    Returns:
        `trials`: `name`, `status` and `config` of every trial that is decided so far; `undecided`: the phases whose
        trials depend on results that are not there yet.
    """
    study = _with_micro_batch(study, options.workers)
    journal = read_journal(options.storage / study.name)
    trials = all_trials(study, journal, options.seeds)
    return {
        "trials": [
            {
                "name": record.trial.name,
                "status": record.status,
                "config": record.trial.experiment.model_dump(mode="json"),
            }
            for record in records_of(trials, journal)
        ],
        "undecided": [
            phase.name for phase in study.phases if phase.name not in cells_by_phase(study, journal)
        ],
    }


def is_complete(study: Study, options: StudyOptions) -> bool:
    """Whether all phases are decided, and no run of theirs is left to do but such as have failed for good."""
    study = _with_micro_batch(study, options.workers)
    journal = read_journal(options.storage / study.name)
    records = records_of(all_trials(study, journal, options.seeds), journal)
    return num_undecided_trials(study, journal, options.seeds) == 0 and all(
        record.status != "pending" for record in records
    )


def run_study(study: Study, options: StudyOptions) -> int:
    """Run what is missing of a study and print its ranking.

    Returns:
        Exit code: 0, 1 if trials failed, or 6 if the budget was spent before all was done.

    Raises:
        DataError: the data are bad; nothing has started.
        StudyError: the directory belongs to a study with other settings, or another process runs it.
        TrackingError: the tracking server cannot be used.
    """
    study = _with_micro_batch(study, options.workers)
    _refuse_slow_bf16(study, options)
    check_apart(study.base, workers=options.workers)  # before Ray starts
    _check_early_stopping(study, options)
    root = options.storage / study.name
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(root))
        remember_study(study, journal)
        tracker = open_tracker(options.tracking_uri, directory=options.storage, experiment=study.name)
        deviation = remember_protocol(journal, protocol_of(study, options))
        console = stack.enter_context(own_terminal(root / "noise.log"))
        stack.enter_context(_log_file(root / "master_log.txt"))
        meter = Meter(root, journal)
        view = StudyView(
            console=console, study=study.name, metric=study.metric, meter=meter, budget=options.budget
        )
        run = StudyRun(
            study=study,
            options=options,
            root=root,
            journal=journal,
            meter=meter,
            tracker=tracker,
            view=view,
            stack=stack,
        )
        if deviation is not None:
            view.say(f"other rules than before, the report will say so: {'; '.join(deviation.changes)}")
        with view.live():
            code = run.all_phases()
        console.print(ranking_table(study, run.records()))
        view.say(f"journal, summary and runs: {root}")
    return code


def _with_micro_batch(study: Study, workers: int) -> Study:
    """The fusions' BatchNorm looks at one micro-batch: its size belongs to a study's settings, the workers do not."""
    train = study.base.train
    if train.micro_batch == "auto":
        raise StudyError(
            "train.micro_batch=auto may differ from trial to trial, and with it what batch norms see; set a number "
            "that fits the largest model, see `raydet plan`"
        )
    micro_batch, _ = batch_plan(train.global_batch, workers, train.micro_batch)
    base = apply_overrides(study.base, {"train.micro_batch": micro_batch})
    return study.model_copy(update={"base": base})


def _refuse_slow_bf16(study: Study, options: StudyOptions) -> None:
    """Precision may be a factor of the study, so every trial that is left to run, as far as decided, is looked at."""
    if "RAY_ADDRESS" in os.environ:  # the workers of a cluster look at their own CPUs
        return
    journal = read_journal(options.storage / study.name)
    for record in records_of(all_trials(study, journal, options.seeds), journal):
        if record.status != "finished":
            refuse_slow_bf16(record.trial.experiment.train, use_gpu=options.use_gpu)


def _check_early_stopping(study: Study, options: StudyOptions) -> None:
    if options.early_stopping is None:
        return
    options.early_stopping.rungs(study.base.train)
    if not any(is_screening(phase) for phase in study.phases):
        raise StudyError(
            f"--asha: every phase of {study.name} is a comparison, none only chooses what goes on"
        )


@dataclass(slots=True)
class StudyRun:
    """One command's work on a study."""

    study: Study
    options: StudyOptions
    root: Path
    journal: Journal
    meter: Meter
    tracker: Tracker
    view: StudyView
    stack: ExitStack
    """What is to be ended with the command."""
    has_cluster: bool = False
    num_run: int = 0
    """Trials that this command has run."""
    _summary: Summary = field(init=False)
    _decided: tuple[int, dict[str, tuple[Trial, ...]]] = (-1, {})
    """The trials, and how many decisions they follow from."""

    def __post_init__(self) -> None:
        self._summary = Summary(self.study, self.root)

    def all_phases(self) -> int:
        """Phase after phase; stops early where `--max-trials` is reached, or where nothing can be promoted."""
        for phase in self.study.phases:
            if not self._decide(phase):
                return EXIT_TRIALS_FAILED
            records, known = self._records_of_phase(phase.name), self.records()
            self.view.begin_phase(
                phase.name,
                records,
                known,
                num_missing=len(self.missing(phase)),
                num_done=len(known) - self._num_left(),
                num_undecided=num_undecided_trials(self.study, self.journal, self.options.seeds),
            )
            self._summary.know(known)
            self._catch_up(records)
            while missing := self.missing(phase):
                if self._is_budget_spent():
                    return self._end_of_budget()
                if not self._run(phase, missing):
                    self.view.say(
                        f"{phase.name}: {len(missing)} trials left after --max-trials {self.options.max_trials}; "
                        "the same command goes on"
                    )
                    return self._exit_code()
            self._summary.write()
        if self.num_run == 0:
            self.view.say(f"{self.study.name}: everything has run already, nothing to do")
        return self._exit_code()

    def _is_budget_spent(self) -> bool:
        return self.options.budget.is_spent(self.meter.total())

    def _end_of_budget(self) -> int:
        usage = self.meter.total()
        num_left = self._num_left() + num_undecided_trials(self.study, self.journal, self.options.seeds)
        self.journal.append("overspent", budget=str(self.options.budget), usage=usage.as_json())
        self.view.say(
            f"{self.study.name}: the budget of {self.options.budget} is spent ({usage}), {num_left} trials left; "
            "nothing is lost, the same command with a larger budget goes on"
        )
        return EXIT_BUDGET_SPENT

    def _exit_code(self) -> int:
        """0, or 1 after naming what failed."""
        failed = [record for record in self.records() if record.status == "failed"]
        if not failed:
            return EXIT_OK
        is_given_up = any(not self._is_tried_again(record.trial) for record in failed)
        self.view.say(
            f"{len(failed)} trials failed, first {failed[0].trial.name}: {failed[0].reason}; "
            + (
                "--retry-failed tries again what was given up"
                if is_given_up
                else "the same command tries again"
            )
        )
        return EXIT_TRIALS_FAILED

    def _num_left(self) -> int:
        """Trials of all decided phases that are to be run."""
        phases = [phase for phase in self.study.phases if phase.name in self._trials()]
        return len({trial.key for phase in phases for trial in self.missing(phase)})

    def records(self) -> list[TrialRecord]:
        """Every trial that is decided so far."""
        trials = {trial.key: trial for trials in self._trials().values() for trial in trials}
        return records_of(tuple(trials.values()), self.journal)

    def _records_of_phase(self, phase: str) -> list[TrialRecord]:
        return records_of(self._trials()[phase], self.journal)

    def _trials(self) -> dict[str, tuple[Trial, ...]]:
        """Of the phases that are decided; put together anew only after a decision."""
        num_decisions = len(self.journal.of("promoted")) + len(self.journal.of("confirming"))
        if self._decided[0] != num_decisions:
            trials = trials_by_phase(self.study, self.journal, self.options.seeds)
            self._decided = (num_decisions, trials)
        return self._decided[1]

    def _decide(self, phase: Phase) -> bool:
        """Fix the runs of a phase, once: it stands, whatever is run later. False where nothing can be chosen."""
        match phase:
            case ControlPhase() | GridPhase():
                return True
            case PromotionPhase():
                return self._promote(phase)
            case ConfirmationPhase():
                return self._choose_for_confirmation(phase)
            case _:
                assert_never(phase)

    def _choose_for_confirmation(self, phase: ConfirmationPhase) -> bool:
        if confirmed_codes(self.journal) is not None:
            return True
        chosen = contenders(self.records(), self.study.metric)
        has_controls = any(isinstance(other, ControlPhase) for other in self.study.phases)
        if len(chosen) < 1 + has_controls:
            self.view.say(f"{phase.name}: nothing can be confirmed, every cell or every control failed")
            return False
        self.journal.append(
            "confirming",
            metric=self.study.metric,
            codes=[code for code, _ in chosen],
            means=[mean for _, mean in chosen],
        )
        named = " against ".join(f"{code} (mean {mean:.4f})" for code, mean in chosen)
        self.view.say(f"{phase.name}: {named}, with fresh seeds")
        return True

    def _promote(self, phase: PromotionPhase) -> bool:
        if promoted_values(self.journal, phase) is not None:
            return True
        records = self._records_of_phase(phase.source)
        candidates = candidates_of(records, phase.promote, self.study.metric)
        left_out = [record for record in records if record.status == "failed"]
        for record in left_out:
            self.view.say(f"{phase.name}: without {record.trial.name}, which failed: {record.reason}")
        choices = promote(candidates, top=phase.top, margin=phase.margin)
        if not choices:
            self.view.say(f"{phase.name}: nothing can be promoted, every trial of {phase.source} failed")
            return False
        self.journal.append(
            "promoted",
            phase=phase.name,
            metric=self.study.metric,
            margin=phase.margin,
            seeds=self.options.seeds,
            choices=[choice.model_dump(mode="json") for choice in choices],
            left_out=[record.trial.name for record in left_out],
        )
        for choice in choices:
            self.view.say(f"{phase.name}: stages {list(choice.pattern)} go on: {choice.reason}")
        return True

    def _run(self, phase: Phase, missing: Sequence[Trial]) -> bool:
        """Run them, as far as the budget goes; False where nothing is left of it."""
        budget = self.options.max_trials
        trials = missing if budget is None else missing[: max(0, budget - self.num_run)]
        if not trials:
            return False
        from raydet.launch.cluster import cluster, refuse_beyond_this_machine
        from raydet.tune.ray_tune import execute_trials

        if not self.has_cluster:
            refuse_beyond_this_machine(
                self.study.base.train,
                self.options.workers,
                cpus=self.options.cpus_per_worker,
                concurrency=self.options.concurrency,
            )
            self.stack.enter_context(cluster())
            self.has_cluster = True
        try:
            with self._book(phase.name, self._screening(phase)) as listener:
                execute_trials(
                    trials,
                    root=self.root,
                    options=self.options,
                    listener=listener,
                    say=self.view.say,
                    is_spent=self._is_budget_spent,
                )
        finally:
            self._summary.write()
        self.num_run += len(trials)
        return True

    def _early_stopping(self, phase: Phase) -> EarlyStopping | None:
        return self.options.early_stopping if is_screening(phase) else None

    def _screening(self, phase: Phase) -> Screening | None:
        rule = self._early_stopping(phase)
        if rule is None:
            return None
        trials = [record.trial for record in self._records_of_phase(phase.name)]
        return Screening(rule, trials, root=self.root, metric=self.study.metric)

    def _book(self, phase: str, screening: Screening | None = None) -> PhaseBook:
        return PhaseBook(
            phase,
            root=self.root,
            journal=self.journal,
            meter=self.meter,
            tracker=self.tracker,
            view=self.view,
            screening=screening,
            is_tried_again=self._is_tried_again,
            on_ended=self._summary.ended,
        )

    def _is_tried_again(self, trial: Trial) -> bool:
        """A trial that was stopped early and goes on begins with all its chances."""
        failures = 0
        about = self.journal.new_about if self.options.retry_failed else self.journal.about
        for entry in about(trial.key):
            failures = 0 if entry["event"] == "stopped" else failures + (entry["event"] == "failed")
        return failures <= self.options.retries

    def _catch_up(self, records: Sequence[TrialRecord]) -> None:
        """Write down what a driver that was killed could not: trials that had ended, and what was not tracked."""
        tracked = {entry["key"] for entry in self.journal.of("tracked")}
        for record in records:
            if record.trial.key in tracked:
                continue
            if record.status == "finished":
                with self._book(record.trial.phase) as book:
                    book.track(record)
                continue
            results = finished_results(trial_directory(self.root, record.trial))
            if results is not None and results["fingerprint"] == record.trial.key:
                with self._book(record.trial.phase) as book:
                    book.finished(record.trial, results, wall_s=None)

    def missing(self, phase: Phase) -> list[Trial]:
        """What is to be run; trials that failed before come last, so that they cannot hold up the others."""
        done = {"finished", "stopped"} if self._early_stopping(phase) else {"finished"}
        left = [record for record in self._records_of_phase(phase.name) if record.status not in done]
        left.sort(key=lambda record: record.status == "failed")
        return [record.trial for record in left if self._is_tried_again(record.trial)]


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """What this process logs goes to the study's master log, not to the terminal."""
    handler = logging.FileHandler(path)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()

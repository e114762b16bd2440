"""Run a study: phase after phase, only trials that have not finished by the journal.

Ray Tune runs the trials; this process alone writes the journal, the summary and the tracker.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypedDict, assert_never

from raydet.config import apply_overrides
from raydet.cpu import refuse_slow_bf16
from raydet.data.sampler import batch_plan
from raydet.errors import EXIT_BUDGET_SPENT, EXIT_OK, EXIT_TRIALS_FAILED, StudyError
from raydet.launch.fork_server import warm_workers
from raydet.redact import RedactingFormatter
from raydet.runs.run_dir import finished_results
from raydet.runs.terminal import exclusive_terminal
from raydet.track.base import Tracker
from raydet.track.runs import open_tracker
from raydet.tune import phases
from raydet.tune.budget import UsageMeter
from raydet.tune.cells import Trial, trial_directory
from raydet.tune.check import check_in_subprocess
from raydet.tune.early_stopping import EarlyStopping, Screening
from raydet.tune.journal import Journal, read_journal
from raydet.tune.options import StudyOptions
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
from raydet.tune.trial_listener import TrialListener
from raydet.tune.trial_status import Status, TrialRecord, candidates_of, contenders, ranking_table, records_of
from raydet.tune.view import StudyView

logger = logging.getLogger("raydet")


class PlannedTrial(TypedDict):
    """A decided trial."""

    name: str
    status: Status
    config: Mapping[str, object]


class StudyPlan(TypedDict):
    """The trials that a command would run."""

    trials: list[PlannedTrial]
    undecided: list[str]
    """Phases whose trials depend on results that are still missing."""


def plan_study(study: Study, options: StudyOptions) -> StudyPlan:
    """The trials that `run_study` would run; writes nothing."""
    study = _with_micro_batch(study, options.worker_options.workers)
    journal = read_journal(options.storage / study.name)
    records = records_of(phases.all_trials(study, journal, options.seeds), journal)
    decided = phases.cells_by_phase(study, journal)
    return StudyPlan(
        trials=[
            PlannedTrial(
                name=record.trial.name,
                status=record.status,
                config=record.trial.experiment.model_dump(mode="json"),
            )
            for record in records
        ],
        undecided=[phase.name for phase in study.phases if phase.name not in decided],
    )


def is_complete(study: Study, options: StudyOptions) -> bool:
    """Whether all phases are decided, and all of their trials have ended."""
    study = _with_micro_batch(study, options.worker_options.workers)
    journal = read_journal(options.storage / study.name)
    records = records_of(phases.all_trials(study, journal, options.seeds), journal)
    return phases.num_undecided_trials(study, journal, options.seeds) == 0 and all(
        record.status != "pending" for record in records
    )


def run_study(study: Study, options: StudyOptions) -> int:
    """Run the missing trials of a study and print its ranking.

    Returns:
        Exit code: 0; 1 if trials failed; 6 if the budget was spent before the study was complete.

    Raises:
        DataError: the data are bad; no trial has started.
        StudyError: the directory belongs to a study with other settings, or another process is running it.
        TrackingError: the tracking server cannot be used.
    """
    study = _with_micro_batch(study, options.worker_options.workers)
    _refuse_slow_bf16(study, options)
    with ExitStack() as stack:
        if not is_complete(study, options):
            stack.enter_context(warm_workers())  # it imports while the following is checked
        check_in_subprocess(
            study.base, workers=options.worker_options.workers, task_code=options.task_code
        )  # before Ray starts
        _check_early_stopping(study, options)
        # Before the journal is created: a tracker that cannot be used leaves no study behind.
        tracker = open_tracker(
            options.tracking_uri, directory=options.storage, experiment=study.name, command="raydet tune"
        )
        root = options.storage / study.name
        journal = stack.enter_context(Journal(root))
        phases.remember_study(study, journal)
        deviation = remember_protocol(journal, protocol_of(study, options))
        console = stack.enter_context(exclusive_terminal(root / "third_party.log"))
        stack.enter_context(_logging_to(root / "master_log.txt"))
        meter = UsageMeter(root, journal)
        view = StudyView(
            console=console,
            study=study.name,
            task=study.base.task,
            metric=study.decider,
            meter=meter,
            budget=options.budget,
        )
        run = StudyRun(study, options, root, journal, meter, tracker, view, stack)
        if deviation is not None:
            view.say(f"deviation from the protocol, shown in the report: {'; '.join(deviation.changes)}")
        with view.live():
            code = run.all_phases()
        console.print(ranking_table(study, run.records()))
        view.say(f"journal, summary and runs: {root}")
    return code


def _with_micro_batch(study: Study, workers: int) -> Study:
    """Fix the micro-batch: a setting of the study, as batch norms compute their statistics over it."""
    train = study.base.train
    if train.micro_batch == "auto":
        raise StudyError(
            "train.micro_batch=auto may differ between trials, and with it the statistics of batch norms; set a number "
            "that fits the largest model, see `raydet plan`"
        )
    micro_batch, _ = batch_plan(train.global_batch, workers, train.micro_batch)
    base = apply_overrides(study.base, {"train.micro_batch": micro_batch})
    return study.model_copy(update={"base": base})


def _refuse_slow_bf16(study: Study, options: StudyOptions) -> None:
    """Check every decided trial that has not finished: precision may be a factor of the study."""
    if "RAY_ADDRESS" in os.environ:  # the workers of a cluster check their own CPUs
        return
    journal = read_journal(options.storage / study.name)
    for record in records_of(phases.all_trials(study, journal, options.seeds), journal):
        if record.status != "finished":
            refuse_slow_bf16(record.trial.experiment.train, use_gpu=options.worker_options.use_gpu)


def _check_early_stopping(study: Study, options: StudyOptions) -> None:
    if options.early_stopping is None:
        return
    options.early_stopping.rungs(study.base.train)
    if not any(is_screening(phase) for phase in study.phases):
        raise StudyError(
            f"--asha: {study.name} has no screening phase; its phases compare cells, so every trial runs to its end"
        )


@dataclass(slots=True)
class StudyRun:
    """A command that runs a study."""

    study: Study
    options: StudyOptions
    root: Path
    journal: Journal
    meter: UsageMeter
    tracker: Tracker
    view: StudyView
    stack: ExitStack
    """Contexts that end with the command."""
    has_cluster: bool = False
    num_run: int = 0
    """Number of trials that this command has run."""
    _summary: Summary = field(init=False)
    _decided: tuple[int, dict[str, tuple[Trial, ...]]] = (-1, {})
    """Cache of `_trials`: the number of decisions, and the trials of the phases decided by then."""

    def __post_init__(self) -> None:
        self._summary = Summary(self.study, self.root)

    def all_phases(self) -> int:
        """Run phase after phase, until `--max-trials` or the budget is reached, or nothing can be promoted."""
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
                num_undecided=phases.num_undecided_trials(self.study, self.journal, self.options.seeds),
            )
            self._summary.add(known)
            self._catch_up(records)
            while missing := self.missing(phase):
                if self._is_budget_spent():
                    return self._end_of_budget()
                if not self._run(phase, missing):
                    self.view.say(
                        f"{phase.name}: {len(missing)} trials left after --max-trials {self.options.max_trials}; "
                        "the same command continues"
                    )
                    return self._exit_code()
            self._summary.write()
        if self.num_run == 0:
            self.view.say(f"{self.study.name}: all trials have already run, nothing to do")
        return self._exit_code()

    def _is_budget_spent(self) -> bool:
        return self.options.budget.is_spent(self.meter.total())

    def _end_of_budget(self) -> int:
        usage = self.meter.total()
        num_undecided = phases.num_undecided_trials(self.study, self.journal, self.options.seeds)
        num_left = self._num_left() + num_undecided
        self.journal.append("budget_exhausted", budget=str(self.options.budget), usage=usage.as_json())
        self.view.say(
            f"{self.study.name}: the budget of {self.options.budget} is spent ({usage}), {num_left} trials left; "
            "nothing is lost, the same command with a larger budget continues"
        )
        return EXIT_BUDGET_SPENT

    def _exit_code(self) -> int:
        """0, or 1 after naming the first failed trial."""
        failed = [record for record in self.records() if record.status == "failed"]
        if not failed:
            return EXIT_OK
        is_retried = all(self._will_retry(record.trial) for record in failed)
        remedy = "the same command" if is_retried else "--retry-failed"
        self.view.say(
            f"{len(failed)} trials failed, first {failed[0].trial.name}: {failed[0].reason}; {remedy} tries again"
        )
        return EXIT_TRIALS_FAILED

    def _num_left(self) -> int:
        """Number of trials of decided phases that have to run."""
        decided = [phase for phase in self.study.phases if phase.name in self._trials()]
        return len({trial.key for phase in decided for trial in self.missing(phase)})

    def records(self) -> list[TrialRecord]:
        """Records of all decided trials."""
        trials = {trial.key: trial for trials in self._trials().values() for trial in trials}
        return records_of(tuple(trials.values()), self.journal)

    def _records_of_phase(self, phase: str) -> list[TrialRecord]:
        return records_of(self._trials()[phase], self.journal)

    def _trials(self) -> dict[str, tuple[Trial, ...]]:
        """Trials of the decided phases."""
        num_decisions = len(self.journal.of("promoted")) + len(self.journal.of("confirmation_selected"))
        if self._decided[0] != num_decisions:
            trials = phases.trials_by_phase(self.study, self.journal, self.options.seeds)
            self._decided = (num_decisions, trials)
        return self._decided[1]

    def _decide(self, phase: Phase) -> bool:
        """Decide the trials of a phase, once and for all; False if there is nothing to choose from."""
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
        if phases.confirmed_codes(self.journal) is not None:
            return True
        chosen = contenders(self.records(), self.study.decider)
        has_controls = any(isinstance(other, ControlPhase) for other in self.study.phases)
        if len(chosen) < 1 + has_controls:
            self.view.say(f"{phase.name}: nothing can be confirmed: every cell or every control failed")
            return False
        self.journal.append(
            "confirmation_selected",
            metric=self.study.decider.name,
            codes=[code for code, _ in chosen],
            means=[mean for _, mean in chosen],
        )
        named = " against ".join(f"{code} (mean {mean:.4f})" for code, mean in chosen)
        self.view.say(f"{phase.name}: {named}, with fresh seeds")
        return True

    def _promote(self, phase: PromotionPhase) -> bool:
        if phases.promoted_values(self.journal, phase) is not None:
            return True
        records = self._records_of_phase(phase.source)
        candidates = candidates_of(records, phase.promote, self.study.decider)
        left_out = [record for record in records if record.status == "failed"]
        for record in left_out:
            self.view.say(f"{phase.name}: {record.trial.name} is left out, as it failed: {record.reason}")
        choices = promote(candidates, metric=self.study.decider, top=phase.top, margin=phase.margin)
        if not choices:
            self.view.say(f"{phase.name}: nothing can be promoted: every trial of {phase.source} failed")
            return False
        self.journal.append(
            "promoted",
            phase=phase.name,
            metric=self.study.decider.name,
            margin=phase.margin,
            seeds=self.options.seeds,
            choices=[choice.model_dump(mode="json") for choice in choices],
            left_out=[record.trial.name for record in left_out],
        )
        for choice in choices:
            self.view.say(f"{phase.name}: promoted stages {list(choice.pattern)}: {choice.reason}")
        return True

    def _run(self, phase: Phase, missing: Sequence[Trial]) -> bool:
        """Run trials up to `--max-trials`; False if that is reached already."""
        limit = self.options.max_trials
        trials = missing if limit is None else missing[: max(0, limit - self.num_run)]
        if not trials:
            return False
        from raydet.launch.cluster import check_fits_this_machine, cluster
        from raydet.tune.ray_tune import execute_trials

        if not self.has_cluster:
            check_fits_this_machine(
                self.study.base.train,
                self.options.worker_options,
                concurrency=self.options.concurrency,
            )
            self.stack.enter_context(cluster())
            self.has_cluster = True
        screening, rule = None, self._early_stopping(phase)
        if rule is not None:
            in_phase = [record.trial for record in self._records_of_phase(phase.name)]
            screening = Screening(rule, in_phase, root=self.root, metric=self.study.decider)
        try:
            with self._listener(phase.name, screening) as listener:
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

    def _listener(self, phase: str, screening: Screening | None = None) -> TrialListener:
        shared = (self.root, self.journal, self.meter, self.tracker, self.view)
        decisions = (screening, self._will_retry, self._summary.ended)
        return TrialListener(phase, *shared, *decisions, self.options.log_checkpoints)

    def _will_retry(self, trial: Trial) -> bool:
        """Whether a trial has retries left; failures before it was stopped early do not count."""
        failures = 0
        about = self.journal.new_about if self.options.retry_failed else self.journal.about
        for event in about(trial.key):
            failures = 0 if event.kind == "stopped" else failures + (event.kind == "failed")
        return failures <= self.options.retries

    def _catch_up(self, records: Sequence[TrialRecord]) -> None:
        """Record trials that had ended when a driver was killed, and track those that were not tracked."""
        tracked = {event.key for event in self.journal.of("tracked")}
        for record in records:
            if record.trial.key in tracked:
                continue
            if record.status == "finished":
                with self._listener(record.trial.phase) as listener:
                    listener.track(record)
                continue
            results = finished_results(trial_directory(self.root, record.trial))
            if results is not None and results.fingerprint == record.trial.key:
                with self._listener(record.trial.phase) as listener:
                    listener.finished(record.trial, results, wall_s=None)

    def missing(self, phase: Phase) -> list[Trial]:
        """Trials of a phase that have to run; failed ones last, so that they do not hold up the others."""
        done = {"finished", "stopped"} if self._early_stopping(phase) else {"finished"}
        left = [record for record in self._records_of_phase(phase.name) if record.status not in done]
        left.sort(key=lambda record: record.status == "failed")
        return [record.trial for record in left if self._will_retry(record.trial)]


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """While the block runs, append all log messages of this process to a file."""
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

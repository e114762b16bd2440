"""Run a study: phase after phase, only what the journal does not have.

The journal is the truth, Ray Tune runs the trials, and this process alone writes the journal, the summary and the
tracker.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raydet.config import apply_overrides
from raydet.data.sampler import batch_plan
from raydet.errors import EXIT_OK, EXIT_TRIALS_FAILED, StudyError
from raydet.track.base import Tracker
from raydet.track.runs import open_tracker
from raydet.train.control import Upkeep
from raydet.train.preflight import check
from raydet.train.record import finished_results
from raydet.train.terminal import own_terminal
from raydet.tune.bookkeeping import PhaseBook
from raydet.tune.journal import Journal, read_journal
from raydet.tune.phases import (
    all_cells,
    cells_by_phase,
    num_undecided_cells,
    promoted_values,
    remember_study,
)
from raydet.tune.records import TrialRecord, ranking_table, records_of, write_summary
from raydet.tune.select import candidates_from, promote
from raydet.tune.study import PromotionPhase, Study, Trial, seeds_of, trial_directory, trials_of
from raydet.tune.view import StudyView

logger = logging.getLogger("raydet")


@dataclass(frozen=True, slots=True)
class StudyOptions:
    """How a study is run; nothing here changes the result of a trial."""

    storage: Path
    """Directory of all studies, readable from every node."""
    seeds: int = 1
    max_trials: int | None = None
    concurrency: int | None = None
    workers: int = 1
    min_workers: int | None = None
    cpus_per_worker: int | None = None
    use_gpu: bool | None = None
    upkeep: Upkeep = Upkeep()  # noqa: RUF009  -- frozen
    tracking_uri: str | None = None

    def __post_init__(self) -> None:
        for flag in ("seeds", "max_trials", "concurrency", "workers", "cpus_per_worker"):
            value = getattr(self, flag)
            if value is not None and value < 1:
                raise StudyError(f"--{flag.replace('_', '-')} wants at least 1, got {value}")
        if self.min_workers is not None and not 1 <= self.min_workers <= self.workers:
            raise StudyError(f"--min-workers wants 1 to --workers {self.workers}, got {self.min_workers}")


def plan_study(study: Study, options: StudyOptions) -> dict[str, Any]:
    """What `run_study` would run; nothing is written.

    Returns:
        `trials`: `name`, `status` and `config` of every trial that is decided so far; `undecided`: the phases whose
        trials depend on results that are not there yet.
    """
    study = _with_micro_batch(study, options.workers)
    journal = read_journal(options.storage / study.name)
    trials = trials_of(study, all_cells(study, journal), seeds_of(study, options.seeds))
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


def run_study(study: Study, options: StudyOptions) -> int:
    """Run what is missing of a study and print its ranking.

    Returns:
        Exit code: 0, or 1 if trials failed.

    Raises:
        DataError: the data are bad; nothing has started.
        StudyError: the directory belongs to a study with other settings, or another process runs it.
        TrackingError: the tracking server cannot be used.
    """
    study = _with_micro_batch(study, options.workers)
    check(study.base, workers=options.workers)  # before Ray starts
    root = options.storage / study.name
    with ExitStack() as stack:
        journal = stack.enter_context(Journal(root))
        remember_study(study, journal)
        tracker = open_tracker(options.tracking_uri, directory=options.storage, experiment=study.name)
        console = stack.enter_context(own_terminal(root / "noise.log"))
        stack.enter_context(_log_file(root / "master_log.txt"))
        view = StudyView(console=console, study=study.name, metric=study.metric)
        run = StudyRun(
            study=study,
            options=options,
            root=root,
            journal=journal,
            tracker=tracker,
            view=view,
            stack=stack,
        )
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


@dataclass(slots=True)
class StudyRun:
    """One command's work on a study."""

    study: Study
    options: StudyOptions
    root: Path
    journal: Journal
    tracker: Tracker
    view: StudyView
    stack: ExitStack
    """What is to be ended with the command."""
    num_run: int = 0
    """Trials that this command has run."""

    def all_phases(self) -> int:
        """Phase after phase; stops early where trials failed or `--max-trials` is reached."""
        for phase in self.study.phases:
            if isinstance(phase, PromotionPhase):
                self._decide(phase)
            records = self._records_of_phase(phase.name)
            num_undecided = num_undecided_cells(self.study, self.journal) * self.options.seeds
            self.view.begin_phase(phase.name, records, self.records(), num_undecided)
            self._catch_up(records)
            self._run(self._missing(phase.name))
            code = self._stop_after(phase.name)
            if code is not None:
                return code
        if self.num_run == 0:
            self.view.say(f"{self.study.name}: everything has run already, nothing to do")
        return EXIT_OK

    def records(self) -> list[TrialRecord]:
        """Every trial that is decided so far."""
        return self._records_of_cells(all_cells(self.study, self.journal))

    def _records_of_phase(self, phase: str) -> list[TrialRecord]:
        return self._records_of_cells(cells_by_phase(self.study, self.journal)[phase])

    def _records_of_cells(self, cells: Sequence[Any]) -> list[TrialRecord]:
        return records_of(
            trials_of(self.study, cells, seeds_of(self.study, self.options.seeds)), self.journal
        )

    def _decide(self, phase: PromotionPhase) -> None:
        """Promote, once: a decision stands, whatever is run later."""
        if promoted_values(self.journal, phase) is not None:
            return
        scores: dict[tuple[int, ...], list[float]] = {}
        for record in self._records_of_phase(phase.source):
            pattern = record.trial.cell.values[phase.promote]
            assert isinstance(pattern, tuple)
            scores.setdefault(pattern, []).append(record.score(self.study.metric) or 0.0)
        choices = promote(candidates_from(scores), top=phase.top, margin=phase.margin)
        self.journal.append(
            "promoted",
            phase=phase.name,
            metric=self.study.metric,
            margin=phase.margin,
            seeds=self.options.seeds,
            choices=[choice.model_dump(mode="json") for choice in choices],
        )
        for choice in choices:
            self.view.say(f"{phase.name}: stages {list(choice.pattern)} go on: {choice.reason}")

    def _run(self, missing: Sequence[Trial]) -> None:
        budget = self.options.max_trials
        trials = missing if budget is None else missing[: max(0, budget - self.num_run)]
        if not trials:
            return
        from raydet.train.launch import cluster
        from raydet.tune.execute import execute_trials

        self.stack.enter_context(cluster())
        with self._book(trials[0].phase) as listener:
            execute_trials(
                trials,
                root=self.root,
                concurrency=self.options.concurrency,
                workers=self.options.workers,
                min_workers=self.options.min_workers,
                cpus_per_worker=self.options.cpus_per_worker,
                use_gpu=self.options.use_gpu,
                upkeep=self.options.upkeep,
                listener=listener,
            )
        self.num_run += len(trials)

    def _book(self, phase: str) -> PhaseBook:
        return PhaseBook(
            phase,
            root=self.root,
            journal=self.journal,
            tracker=self.tracker,
            view=self.view,
            on_ended=lambda: write_summary(self.study, self.records(), self.root),
        )

    def _stop_after(self, phase: str) -> int | None:
        left = [record for record in self._records_of_phase(phase) if record.status != "finished"]
        now_failed = {entry["key"] for entry in self.journal.of("failed") if entry in self.journal.new_events}
        failed = [record for record in left if record.trial.key in now_failed]
        if failed:
            self.view.say(
                f"{phase}: {len(failed)} trials failed, first {failed[0].trial.name}: {failed[0].reason}; "
                "the same command runs them again"
            )
            return EXIT_TRIALS_FAILED
        if left:
            self.view.say(
                f"{phase}: {len(left)} trials left after --max-trials {self.options.max_trials}; "
                "the same command goes on"
            )
            return EXIT_OK
        return None

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

    def _missing(self, phase: str) -> list[Trial]:
        """What is to be run; trials that failed before come last, so that they cannot hold up the others."""
        records = [record for record in self._records_of_phase(phase) if record.status != "finished"]
        return [record.trial for record in sorted(records, key=lambda record: record.status == "failed")]


@contextmanager
def _log_file(path: Path) -> Iterator[None]:
    """What this process logs goes to the study's master log, not to the terminal."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(name)s %(levelname)s %(message)s"))
    root = logging.getLogger()
    root.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        root.removeHandler(handler)
        handler.close()

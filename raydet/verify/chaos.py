"""A study whose workers, nodes and drivers are killed at random while it runs, and a check that nothing is lost."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, get_args

from raydet.errors import ConfigError, StalledError, TrainingError
from raydet.resilience.current_phase import Phase
from raydet.resilience.fault_injection import (
    FAULT_PHASES,
    VARIABLE,
    Fault,
    FaultHit,
    Target,
    fault_hit,
    inject_fault,
    withdraw_fault,
)
from raydet.runs.run_dir import FINAL_RESULTS, PROGRESS
from raydet.verify.study import StudyReport, check_study

if TYPE_CHECKING:
    from raydet.verify.nodes import LocalNodes

Item = TypeVar("Item")
Result = TypeVar("Result")

TARGETS: tuple[Target, ...] = get_args(Target)
NOTICE_S = 30
"""Seconds between the notice of a pre-emption and the end of the node."""
POLL_S = 0.1
NUM_LOG_LINES = 3
NODE_TARGETS = {"node", "preemption"}
"""Targets that take a node away."""


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """How to disturb a study. All targets and all phases are used before one is repeated."""

    kills: int = 6
    targets: Sequence[Target] = TARGETS
    phases: Sequence[Phase] = FAULT_PHASES
    seed: int = 0
    """Seed of the order of targets and phases, and of the pauses."""
    nodes: int = 3
    cpus_per_node: int = 1
    replace: bool = True
    """A node that was killed is replaced."""
    longest_pause_s: float = 5.0
    """Longest undisturbed training between two kills."""
    patience_s: float = 600.0
    """How long a study may make no progress before it counts as hung."""

    def __post_init__(self) -> None:
        for flag in ("kills", "nodes", "cpus_per_node"):
            if getattr(self, flag) < 1:
                raise ConfigError(f"--{flag.replace('_', '-')} must be at least 1, got {getattr(self, flag)}")
        if not self.replace and NODE_TARGETS & set(self.targets) and self.kills >= self.nodes:
            raise ConfigError(
                f"--no-replace with {self.kills} kills may take all {self.nodes} nodes; raise --nodes, or lower --kills"
            )


def shuffled(items: Sequence[Item], rng: random.Random) -> Iterator[Item]:
    """The items in random order, endlessly; all are used before one is repeated."""
    while True:
        yield from reversed(rng.sample(items, len(items)))


@dataclass(frozen=True, slots=True)
class Kill:
    """A kill that has happened."""

    strike: FaultHit
    recovery_s: float | None
    """Seconds until the next completed step; None: the run ended first, before it got notice of a pre-emption."""

    def __str__(self) -> str:
        fault, hit = self.strike.fault, self.strike
        recovery = "the run ended first"
        if self.recovery_s is not None:
            recovery = f"training again after {self.recovery_s:.1f} s"
        where = f"rank {hit.rank} in {fault.phase}, step {hit.step} of {Path(hit.run_dir).name}"
        return f"{fault.target:10} {where}: {recovery}"


@dataclass(frozen=True, slots=True)
class ChaosReport:
    """The kills of a disturbed study, and what the check has found."""

    kills: list[Kill]
    ordered: int
    """Kills that were planned; the study may end before all have happened."""
    exit_code: int
    """Exit code of the last driver."""
    wall_s: float
    study: StudyReport

    @property
    def is_proof(self) -> bool:
        """Whether the study was disturbed, finished, and nothing is lost or duplicated."""
        return bool(self.kills) and self.exit_code == 0 and not self.study.problems


class Chaos:
    """One disturbed study.

    Args:
        arguments: arguments of `raydet tune`, without --storage.
        storage: an empty directory.
        tell: called with each kill.

    Raises:
        ConfigError: the storage is not empty, or the arguments contain --storage.
    """

    def __init__(
        self, arguments: Sequence[str], *, storage: Path, options: ChaosOptions, tell: Callable[[Kill], None]
    ) -> None:
        if any(argument.split("=")[0] == "--storage" for argument in arguments):
            raise ConfigError(
                "--storage must precede the study's command: `raydet chaos --storage DIR -- tune ...`"
            )
        storage.mkdir(parents=True, exist_ok=True)
        if any(storage.iterdir()):
            raise ConfigError(
                f"--storage {storage} is not empty; a disturbed study must have its own directory"
            )
        self._arguments = list(arguments)
        self._storage = storage
        self._options = options
        self._tell = tell
        self._rng = random.Random(options.seed)
        self._targets = shuffled(options.targets, self._rng)
        self._phases = shuffled(options.phases, self._rng)
        self._faults = storage / "faults"
        self._log = storage / "driver.log"
        self._kills: list[Kill] = []

    def run(self) -> ChaosReport:
        """Start the cluster and the study, kill, wait for the end, check.

        Raises:
            StalledError: the study has made no progress for too long.
            TrainingError: the study has never started; the end of its log is shown.
        """
        started = time.monotonic()
        # The workers inherit these from the nodes.
        os.environ |= {VARIABLE: str(self._faults), "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
        from raydet.verify.nodes import LocalNodes

        with LocalNodes(self._options.nodes, cpus=self._options.cpus_per_node) as nodes:
            self._address = nodes.address
            self._driver = self._start()
            try:
                for _ in range(self._options.kills):
                    hit = self._inject()
                    if hit is None:
                        break
                    starts = _starts(Path(hit.run_dir))
                    self._kill_target(hit, nodes)
                    self._kills.append(Kill(hit, self._wait_for_training(hit, starts)))
                    self._tell(self._kills[-1])
                withdraw_fault(self._faults)
                while self._driver.poll() is None:
                    self._check_progress()
                    time.sleep(POLL_S)
                code = self._driver.wait()
            finally:
                self._driver.kill()
        studies = [path.parent for path in self._storage.glob("*/journal.jsonl")]
        if not studies:
            raise TrainingError(
                f"the study ended with exit code {code} before it started: {self._log_tail()}"
            )
        tracking = re.search(r"--tracking-uri[ =](\S+)", " ".join(self._arguments))
        return ChaosReport(
            kills=self._kills,
            ordered=self._options.kills,
            exit_code=code,
            wall_s=round(time.monotonic() - started, 1),
            study=check_study(studies[0], tracking_uri=tracking[1] if tracking else None),
        )

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "raydet.tune", *self._arguments, "--storage", str(self._storage)]
        for flag, value in (
            ("--checkpoint-minutes", "0.1"),
            ("--max-failures", str(self._options.kills + 3)),
            # A node may be missing when a driver starts.
            ("--wait-minutes", f"{self._options.patience_s / 60:g}"),
        ):
            if not any(argument.split("=")[0] == flag for argument in self._arguments):
                command += [flag, value]
        environment = os.environ | {"RAY_ADDRESS": self._address}
        with self._log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def _inject(self) -> FaultHit | None:
        """Inject the next fault and wait for its hit; None: the study ended first."""
        deadline = time.monotonic() + self._rng.uniform(0, self._options.longest_pause_s)
        while time.monotonic() < deadline:
            if self._driver.poll() is not None:
                return None
            time.sleep(POLL_S)
        inject_fault(self._faults, Fault(next(self._phases), target=next(self._targets)))
        return self._wait_for(lambda: fault_hit(self._faults))

    def _kill_target(self, hit: FaultHit, nodes: LocalNodes) -> None:
        """Kill what the worker that was hit cannot kill itself."""
        match hit.fault.target:
            case "node":
                nodes.kill_node_of(hit.pid)
            case "preemption":
                self._preempt(hit, nodes)
            case "trial":
                if not nodes.kill_trials():
                    raise TrainingError("found no trial process to kill, though one of its workers was hit")
            case "driver":
                self._driver.kill()
                self._driver.wait()
                self._driver = self._start()
        if hit.fault.target in NODE_TARGETS and self._options.replace:
            nodes.add()

    def _preempt(self, hit: FaultHit, nodes: LocalNodes) -> None:
        """Announce the end of a node; kill it once the run has resumed elsewhere, at the latest after the notice."""
        run_dir = Path(hit.run_dir)
        starts, deadline = _starts(run_dir), time.monotonic() + NOTICE_S
        end = nodes.announce_end_of_node_of(hit.pid, seconds=NOTICE_S)
        while (
            _starts(run_dir) == starts
            and _modified(run_dir / FINAL_RESULTS) < hit.time
            and time.monotonic() < deadline
        ):
            time.sleep(POLL_S)
        end()

    def _wait_for_training(self, hit: FaultHit, starts: int) -> float | None:
        """Seconds from a hit, after `starts` starts, to the next step of the same run; None: the run ended first."""
        run_dir = Path(hit.run_dir)

        def is_over() -> bool | None:
            return _starts(run_dir) > starts or _modified(run_dir / FINAL_RESULTS) > hit.time or None

        if self._wait_for(is_over) is None or _starts(run_dir) == starts:
            return None
        started = time.time()

        def training() -> float | None:
            moved = [_modified(run_dir / name) for name in (PROGRESS, FINAL_RESULTS)]
            return time.time() - hit.time if max(moved) > started else None

        return self._wait_for(training)

    def _wait_for(self, look: Callable[[], Result | None]) -> Result | None:
        """The first result of `look` that is not None; None: the study ended first."""
        while True:
            found = look()
            if found is not None:
                return found
            if self._driver.poll() is not None:
                return look()
            self._check_progress()
            time.sleep(POLL_S)

    def _check_progress(self) -> None:
        newest = max(map(_modified, (self._log, *self._storage.glob(f"*/*/*/{PROGRESS}"))))
        if time.time() - newest > self._options.patience_s:
            raise StalledError(
                f"no training for {self._options.patience_s:.0f} s after {len(self._kills)} kills; "
                f"last: {self._log_tail()}; see {self._log}"
            )

    def _log_tail(self) -> str:
        return " | ".join(self._log.read_text(errors="replace").strip().splitlines()[-NUM_LOG_LINES:])


def _starts(run_dir: Path) -> int:
    """How often the run has started or resumed."""
    return len(re.findall(r"(?:starting at|continuing after) step", (run_dir / "training.log").read_text()))


def _modified(path: Path) -> float:
    """Time of the last modification, as Unix time; 0: there is no file."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0

"""A study whose workers, nodes and drivers are killed at random while it runs, and what comes of it."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar, get_args

from raydet.errors import ConfigError, StalledError, TrainingError
from raydet.resilience.current_phase import Phase
from raydet.resilience.fault_injection import (
    FAULT_PHASES,
    VARIABLE,
    Fault,
    FaultHit,
    Target,
    order,
    struck,
    withdraw,
)
from raydet.runs.run_dir import FINAL_RESULTS, PROGRESS
from raydet.verify.study import StudyReport, check_study

if TYPE_CHECKING:
    from raydet.verify.nodes import LocalNodes

Card = TypeVar("Card")
Result = TypeVar("Result")

TARGETS: tuple[Target, ...] = get_args(Target)
NOTICE_S = 30
"""Between the announcement of a pre-emption and the end of the node."""
POLL_S = 0.1
NUM_LOG_LINES = 3
NODE_TARGETS = {"node", "preemption"}
"""They cost a node."""


@dataclass(frozen=True, slots=True)
class ChaosOptions:
    """How to disturb a study. No target and no phase comes again before all have come."""

    kills: int = 6
    targets: Sequence[Target] = TARGETS
    phases: Sequence[Phase] = FAULT_PHASES
    seed: int = 0
    """Of the order of targets and phases, and of the moments."""
    nodes: int = 3
    cpus_per_node: int = 1
    replace: bool = True
    """A node that was killed is replaced."""
    longest_pause_s: float = 5.0
    """Of undisturbed training between two kills."""
    patience_s: float = 600.0
    """Without any training, before the study counts as hung."""

    def __post_init__(self) -> None:
        for flag in ("kills", "nodes", "cpus_per_node"):
            if getattr(self, flag) < 1:
                raise ConfigError(f"--{flag.replace('_', '-')} wants at least 1, got {getattr(self, flag)}")
        if not self.replace and NODE_TARGETS & set(self.targets) and self.kills >= self.nodes:
            raise ConfigError(
                f"--no-replace with {self.kills} kills may take all {self.nodes} nodes; raise --nodes, or lower --kills"
            )


class Deck(Generic[Card]):
    """Cards in random order; none comes again before all have come."""

    def __init__(self, cards: Sequence[Card], chance: random.Random) -> None:
        self._cards = list(cards)
        self._chance = chance
        self._left: list[Card] = []

    def draw(self) -> Card:
        """The next one."""
        if not self._left:
            self._left = self._chance.sample(self._cards, len(self._cards))
        return self._left.pop()


@dataclass(frozen=True, slots=True)
class Kill:
    """One that has happened."""

    strike: FaultHit
    recovery_s: float | None
    """Until a step had been done again; None: the run ended first, before a pre-emption was heard of."""

    def __str__(self) -> str:
        fault, strike = self.strike.fault, self.strike
        again = "the run ended first"
        if self.recovery_s is not None:
            again = f"training again after {self.recovery_s:.1f} s"
        where = f"rank {strike.rank} in {fault.phase}, step {strike.step} of {Path(strike.run_dir).name}"
        return f"{fault.target:10} {where}: {again}"


@dataclass(frozen=True, slots=True)
class ChaosReport:
    """What came of it."""

    kills: list[Kill]
    ordered: int
    """Kills that were wanted; the study may end before all have happened."""
    exit_code: int
    """Of the last driver."""
    wall_s: float
    study: StudyReport

    @property
    def is_proof(self) -> bool:
        """The study was disturbed, came to its end, and nothing is lost or there twice."""
        return bool(self.kills) and self.exit_code == 0 and not self.study.problems


class Chaos:
    """One disturbed study.

    Args:
        arguments: of `raydet tune`, without --storage.
        storage: a directory of its own.
        tell: called with each kill.

    Raises:
        ConfigError: the storage holds something already, or an argument is not ours to take.
    """

    def __init__(
        self, arguments: Sequence[str], *, storage: Path, options: ChaosOptions, tell: Callable[[Kill], None]
    ) -> None:
        if any(argument.split("=")[0] == "--storage" for argument in arguments):
            raise ConfigError(
                "--storage stands before the study's command: `raydet chaos --storage DIR -- tune ...`"
            )
        storage.mkdir(parents=True, exist_ok=True)
        if any(storage.iterdir()):
            raise ConfigError(
                f"--storage {storage} is not empty; a disturbed study wants a directory of its own"
            )
        self._arguments = list(arguments)
        self._storage = storage
        self._options = options
        self._tell = tell
        self._chance = random.Random(options.seed)
        self._targets = Deck(options.targets, self._chance)
        self._phases = Deck(options.phases, self._chance)
        self._orders = storage / "faults"
        self._log = storage / "driver.log"
        self._kills: list[Kill] = []

    def run(self) -> ChaosReport:
        """Start the cluster and the study, kill, wait for the end, check.

        Raises:
            StalledError: nothing has been trained for too long.
            TrainingError: the study has never begun; its last words are told.
        """
        started = time.monotonic()
        # For the nodes, whose workers inherit it.
        os.environ |= {VARIABLE: str(self._orders), "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "1"}
        from raydet.verify.nodes import LocalNodes

        with LocalNodes(self._options.nodes, cpus=self._options.cpus_per_node) as nodes:
            self._address = nodes.address
            self._driver = self._start()
            try:
                for _ in range(self._options.kills):
                    strike = self._strike()
                    if strike is None:
                        break
                    starts = _starts(Path(strike.run_dir))
                    self._carry_out(strike, nodes)
                    self._kills.append(Kill(strike, self._await_training(strike, starts)))
                    self._tell(self._kills[-1])
                withdraw(self._orders)
                code = self._await_end()
            finally:
                self._driver.kill()
        studies = [path.parent for path in self._storage.glob("*/journal.jsonl")]
        if not studies:
            raise TrainingError(
                f"the study ended with exit code {code} before it began: {self._last_words()}"
            )
        return ChaosReport(
            kills=self._kills,
            ordered=self._options.kills,
            exit_code=code,
            wall_s=round(time.monotonic() - started, 1),
            study=check_study(studies[0], tracking_uri=self._tracking_uri()),
        )

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "raydet.tune", *self._arguments, "--storage", str(self._storage)]
        for flag, value in (
            ("--checkpoint-minutes", "0.1"),
            ("--max-failures", str(self._options.kills + 3)),
            # A node may be gone when a driver starts.
            ("--wait-minutes", f"{self._options.patience_s / 60:g}"),
        ):
            if not any(argument.split("=")[0] == flag for argument in self._arguments):
                command += [flag, value]
        environment = os.environ | {"RAY_ADDRESS": self._address}
        with self._log.open("ab") as log:
            return subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)

    def _strike(self) -> FaultHit | None:
        """The next order, met; None: the study ended before."""
        deadline = time.monotonic() + self._chance.uniform(0, self._options.longest_pause_s)
        while time.monotonic() < deadline:
            if self._driver.poll() is not None:
                return None
            time.sleep(POLL_S)
        order(self._orders, Fault(self._phases.draw(), target=self._targets.draw()))
        return self._await(lambda: struck(self._orders))

    def _carry_out(self, strike: FaultHit, nodes: LocalNodes) -> None:
        """Kill what the struck worker cannot kill itself."""
        match strike.fault.target:
            case "node":
                nodes.kill_node_of(strike.pid)
            case "preemption":
                self._pre_empt(strike, nodes)
            case "trial":
                if not nodes.kill_trials():
                    raise TrainingError(
                        "found no process of a trial to kill, though one of its workers was struck"
                    )
            case "driver":
                self._driver.kill()
                self._driver.wait()
                self._driver = self._start()
        if strike.fault.target in NODE_TARGETS and self._options.replace:
            nodes.add()

    def _pre_empt(self, strike: FaultHit, nodes: LocalNodes) -> None:
        """The node goes once the run has gone on elsewhere, at the latest when the notice is over."""
        run_dir = Path(strike.run_dir)
        starts, deadline = _starts(run_dir), time.monotonic() + NOTICE_S
        end = nodes.announce_end_of_node_of(strike.pid, seconds=NOTICE_S)
        while (
            _starts(run_dir) == starts
            and _written(run_dir / FINAL_RESULTS) < strike.time
            and time.monotonic() < deadline
        ):
            time.sleep(POLL_S)
        end()

    def _await_training(self, strike: FaultHit, starts: int) -> float | None:
        """Seconds from a strike to the first new step of the same run; None: the run ended first.

        Args:
            starts: how often the run had begun before the strike.
        """
        run_dir = Path(strike.run_dir)

        def is_over() -> bool | None:
            return _starts(run_dir) > starts or _written(run_dir / FINAL_RESULTS) > strike.time or None

        if self._await(is_over) is None or _starts(run_dir) == starts:
            return None
        started = time.time()

        def training() -> float | None:
            moved = [_written(run_dir / name) for name in (PROGRESS, FINAL_RESULTS)]
            return time.time() - strike.time if max(moved) > started else None

        return self._await(training)

    def _await(self, look: Callable[[], Result | None]) -> Result | None:
        """What `look` sees in the end; None: the study ended first."""
        while True:
            found = look()
            if found is not None:
                return found
            if self._driver.poll() is not None:
                return look()
            self._check_progress()
            time.sleep(POLL_S)

    def _await_end(self) -> int:
        while self._driver.poll() is None:
            self._check_progress()
            time.sleep(POLL_S)
        return self._driver.wait()

    def _check_progress(self) -> None:
        newest = max(map(_written, (self._log, *self._storage.glob(f"*/*/*/{PROGRESS}"))))
        if time.time() - newest > self._options.patience_s:
            raise StalledError(
                f"nothing has been trained for {self._options.patience_s:.0f} s after {len(self._kills)} kills; "
                f"last: {self._last_words()}; see {self._log}"
            )

    def _last_words(self) -> str:
        lines = self._log.read_text(errors="replace").strip().splitlines()
        return " | ".join(lines[-NUM_LOG_LINES:])

    def _tracking_uri(self) -> str | None:
        text = " ".join(self._arguments)
        found = re.search(r"--tracking-uri[ =](\S+)", text)
        return found[1] if found else None


def _starts(run_dir: Path) -> int:
    """How often the run has begun or gone on."""
    return len(re.findall(r"(?:starting at|continuing after) step", (run_dir / "training.log").read_text()))


def _written(path: Path) -> float:
    """When, as Unix time; 0: never."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return 0.0

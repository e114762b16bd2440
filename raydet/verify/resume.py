"""Comparison of a run that is killed and resumed with the same run undisturbed."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from raydet.checkpoint.diff import compare_checkpoints
from raydet.checkpoint.retention import newest_checkpoint
from raydet.config import Experiment, apply_overrides
from raydet.cpu import refuse_slow_bf16
from raydet.data.build import open_source
from raydet.data.digest import expected_digest
from raydet.data.loader import make_sampler
from raydet.data.split import split_indices
from raydet.engine.preflight import check
from raydet.errors import ConfigError, TrainingError
from raydet.resilience.current_phase import Phase
from raydet.resilience.fault_injection import Fault, fault_hit, inject_fault
from raydet.tasks.build import build_task

ELASTIC_TOLERANCE = 1e-5
ELASTIC_STEPS = 5
"""Relative tolerance of the losses over the first steps after a change of workers: other numbers of workers add in
another order. Later, rounding differences may grow without bound: one proposal on the other side of a threshold is
enough. The same number of workers gives the same bits, to the end."""
LINES_SHOWN = 10
"""Of the log of a run that failed."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The comparison of one killed run."""

    phase: Phase
    steps: int
    repeated_steps: int
    """Steps that were repeated because of the kills."""
    most_repeated_steps: int
    """For each kill twice the steps between two checkpoints: the newest one may have been incomplete."""
    num_equal: int
    """Steps whose loss is bit-identical to the undisturbed run."""
    max_relative: float
    """Largest relative difference of a step's loss."""
    max_relative_after_change: float
    """Largest relative difference up to the first steps with other workers."""
    is_digest_right: bool
    """Every sample was fed into the model once, in order."""
    num_different_weights: int
    """Tensors of the last checkpoint that are not bit-identical to the undisturbed run."""
    is_elastic: bool

    @property
    def is_proof(self) -> bool:
        """Whether nothing was lost, nothing repeated beyond the limit, and nothing changed."""
        if not self.is_digest_right or self.repeated_steps > self.most_repeated_steps:
            return False
        if self.is_elastic:
            return self.max_relative_after_change <= ELASTIC_TOLERANCE
        return self.num_equal == self.steps and self.num_different_weights == 0


class ResumeCheck:
    """One undisturbed run, and any number of killed runs that are compared with it.

    Args:
        experiment: its number of epochs is set to the fewest that make `steps` steps.
        steps: at least 4.
        workers: workers at the start and after each kill; a single number: one kill, as many workers after it.
        directory: parent of the run directories.

    Raises:
        ConfigError: the numbers do not fit together.
        DataError: the data are bad.
    """

    def __init__(
        self, experiment: Experiment, *, steps: int, workers: Sequence[int], directory: Path
    ) -> None:
        if steps < 4:
            raise ConfigError(f"--steps must be 4 or more, got {steps}")
        self.workers = tuple(workers) if len(workers) > 1 else (workers[0], workers[0])
        self.directory = directory
        source = open_source(experiment.data)
        indices = split_indices(source, experiment.data.split)["train"]
        self._sampler = make_sampler(
            experiment.data.sampling, source, indices, experiment.train.global_batch, experiment.seed
        )
        self._image_ids = [source.image_ids[index] for index in indices]
        self._group_ids = [source.group_ids[index] for index in indices]
        epochs = math.ceil(steps / self._sampler.steps_per_pass)
        self.steps = epochs * self._sampler.steps_per_pass
        self.interval = max(1, self.steps // (2 * len(self.workers)))
        settings: dict[str, object] = {
            "train.epochs": epochs,
            "train.steps_per_epoch": None,
            "train.eval_every": epochs,
        }
        if self.is_elastic and experiment.train.micro_batch is None:
            shares = (experiment.train.global_batch // count for count in self.workers)
            settings["train.micro_batch"] = math.gcd(*shares)  # batch norms must keep seeing as many images
        self.experiment = apply_overrides(experiment, settings)
        refuse_slow_bf16(self.experiment.train, use_gpu=None)
        for count in sorted(set(self.workers)):
            check(self.experiment, build_task(self.experiment), workers=count)
        self._config = directory / "config.json"
        self._config.write_text(self.experiment.to_json())

    @property
    def is_elastic(self) -> bool:
        """Whether the number of workers changes."""
        return len(set(self.workers)) > 1

    def run_undisturbed(self) -> None:
        """Train the run that the others are compared with.

        Raises:
            TrainingError: it failed.
        """
        self._run("straight", self.workers[0], {})

    def run_killed(self, phase: Phase) -> Outcome:
        """Train the same run, killed in a phase once for each change of workers, at equal distances.

        Raises:
            TrainingError: it failed for another reason, or was not killed.
        """
        name = f"killed-{phase}"
        for number, count in enumerate(self.workers[:-1], start=1):
            fault = Fault(phase, step=self.steps * number // len(self.workers), rank=count - 1)
            faults = self.directory / f"{name}-{number}"
            self._run(name, count, inject_fault(faults, fault))
            if fault_hit(faults) is None:
                raise TrainingError(f"the run never reached the phase {phase} after step {fault.step}")
        self._run(name, self.workers[-1], {})
        return self._compare(phase, name)

    def _run(self, name: str, workers: int, environment: Mapping[str, str]) -> None:
        """Run one attempt; it may die if `environment` injects a fault."""
        run_dir = self.directory / name
        train = ["raydet", "train", "--workers", "0", "--tracking-uri", "none", "--run-dir", str(run_dir)]
        train += ["--config", str(self._config), "--checkpoint-steps", str(self.interval)]
        several = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(workers), "-m"]
        command = [sys.executable, "-m", *(several if workers > 1 else []), *train]
        log = self.directory / f"{name}.log"
        with log.open("ab") as output:
            result = subprocess.run(
                command, env={**os.environ, **environment}, stdout=output, stderr=output, check=False
            )
        if result.returncode != 0 and not environment:
            said = (
                log.read_text(errors="replace").strip().splitlines()[-LINES_SHOWN:]
            )  # it goes with the directory
            raise TrainingError(
                "\n".join([f"the run {name} failed with exit code {result.returncode}:", *said])
            )

    def _compare(self, phase: Phase, name: str) -> Outcome:
        straight, killed = self.directory / "straight", self.directory / name
        expected, found = _losses(straight), _losses(killed)
        assert len(expected) == len(found) == self.steps, "both runs must have the same number of steps"
        differences = [abs(b - a) / abs(a) for a, b in zip(expected, found, strict=True)]
        last, other = newest_checkpoint(straight), newest_checkpoint(killed)
        assert last is not None
        assert other is not None
        changed = self.steps // len(self.workers)
        content = compare_checkpoints(last, other)
        digest = json.loads((killed / "final_results.json").read_text())["digest"]
        return Outcome(
            phase=phase,
            steps=self.steps,
            repeated_steps=self._repeated_steps(name),
            most_repeated_steps=2 * self.interval * (len(self.workers) - 1),
            num_equal=sum(difference == 0 for difference in differences),
            max_relative=max(differences),
            max_relative_after_change=max(differences[: changed + ELASTIC_STEPS]),
            is_digest_right=digest
            == expected_digest(self._sampler, self._image_ids, steps=self.steps, group_ids=self._group_ids),
            num_different_weights=len(content.different)
            + len(content.only_in_first)
            + len(content.only_in_second),
            is_elastic=self.is_elastic,
        )

    def _repeated_steps(self, name: str) -> int:
        """Sum over the kills: steps completed at the kill, minus the step at which the next attempt resumed."""
        log = (self.directory / name / "training.log").read_text()
        starts = [int(step) for step in re.findall(r"(?:starting at|continuing after) step (\d+)", log)]
        hits = [fault_hit(self.directory / f"{name}-{number}") for number in range(1, len(self.workers))]
        killed = [hit.step for hit in hits if hit is not None]
        return sum(step - start for step, start in zip(killed, starts[1:], strict=True))


def _losses(run_dir: Path) -> list[float]:
    with (run_dir / "metrics_per_batch.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]

"""A run that is killed and continues, against the same run undisturbed."""

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
from typing import Any

from raydet.checkpoint.diff import compare_checkpoints
from raydet.checkpoint.retention import newest_checkpoint
from raydet.config import Experiment, apply_overrides
from raydet.cpu import refuse_slow_bf16
from raydet.data.build import open_source
from raydet.data.digest import expected_digest
from raydet.data.sampler import ElasticSampler
from raydet.data.split import split_indices
from raydet.engine.preflight import check
from raydet.errors import ConfigError, TrainingError
from raydet.resilience.current_phase import Phase
from raydet.resilience.fault_injection import Fault, order, struck

ELASTIC_TOLERANCE = 1e-5
ELASTIC_STEPS = 5
"""So close, relatively, are the losses after the first change of workers, for so many steps: other numbers of workers
add in another order. Later, rounding grows as far as the recipe lets it: one proposal that falls to the other side of
a threshold is enough. The same number of workers gives the same bits, to the end."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one run that was killed."""

    phase: Phase
    steps: int
    repeated_steps: int
    """Steps that the kills cost."""
    most_repeated_steps: int
    """For each kill the steps between two checkpoints, twice: the newest one may have been under way."""
    num_equal: int
    """Steps whose loss is the undisturbed run's to the last bit."""
    max_relative: float
    """Largest difference of a step's loss, over the undisturbed loss."""
    max_relative_after_change: float
    """The same over the first steps with other workers."""
    is_digest_right: bool
    """Every sample once, in its place, by what was fed into the model."""
    num_different_weights: int
    """Tensors of the last checkpoint that are not the undisturbed run's to the last bit."""
    is_elastic: bool

    @property
    def is_proof(self) -> bool:
        """Nothing was lost, nothing was repeated beyond that, nothing changed."""
        if not self.is_digest_right or self.repeated_steps > self.most_repeated_steps:
            return False
        if self.is_elastic:
            return self.max_relative_after_change <= ELASTIC_TOLERANCE
        return self.num_equal == self.steps and self.num_different_weights == 0


class ResumeCheck:
    """One undisturbed run, and any number of disturbed ones to compare with it.

    Args:
        experiment: its number of epochs is set to the fewest that make `steps` steps.
        steps: at least 4.
        workers: of the run at its start and after each kill; a single number: one kill, as many workers after it.
        directory: for the runs.

    Raises:
        ConfigError: the numbers do not go together.
        DataError: the data are bad.
    """

    def __init__(
        self, experiment: Experiment, *, steps: int, workers: Sequence[int], directory: Path
    ) -> None:
        if steps < 4:
            raise ConfigError(f"--steps wants 4 or more, got {steps}")
        self.workers = tuple(workers) if len(workers) > 1 else (workers[0], workers[0])
        self.directory = directory
        source = open_source(experiment.data)
        indices, _ = split_indices(source, experiment.data.split)
        self._sampler = ElasticSampler(len(indices), experiment.train.global_batch, experiment.seed)
        self._image_ids = [source.image_ids[index] for index in indices]
        epochs = math.ceil(steps / self._sampler.steps_per_epoch)
        self.steps = epochs * self._sampler.steps_per_epoch
        self.interval = max(1, self.steps // (2 * len(self.workers)))
        settings: dict[str, Any] = {"train.epochs": epochs, "train.eval_every": epochs}
        if self.is_elastic and experiment.train.micro_batch is None:
            shares = (experiment.train.global_batch // count for count in self.workers)
            settings["train.micro_batch"] = math.gcd(*shares)  # batch norms must go on seeing as many images
        self.experiment = apply_overrides(experiment, settings)
        refuse_slow_bf16(self.experiment.train, use_gpu=None)
        for count in sorted(set(self.workers)):
            check(self.experiment, workers=count)
        self._config = directory / "config.json"
        self._config.write_text(self.experiment.to_json())

    @property
    def is_elastic(self) -> bool:
        """The number of workers changes."""
        return len(set(self.workers)) > 1

    def run_undisturbed(self) -> None:
        """The run that the others are compared with.

        Raises:
            TrainingError: it failed.
        """
        self._run("straight", self.workers[0], {})

    def run_killed(self, phase: Phase) -> Outcome:
        """The same run, killed in a phase once for each change of workers, at even distances.

        Raises:
            TrainingError: it failed otherwise, or was not killed.
        """
        name = f"killed-{phase}"
        for number, count in enumerate(self.workers[:-1], start=1):
            fault = Fault(phase, step=self.steps * number // len(self.workers), rank=count - 1)
            orders = self.directory / f"{name}-{number}"
            self._run(name, count, order(orders, fault))
            if struck(orders) is None:
                raise TrainingError(f"the run never came to the phase {phase} after step {fault.step}")
        self._run(name, self.workers[-1], {})
        return self._compare(phase, name)

    def _run(self, name: str, workers: int, environment: Mapping[str, str]) -> None:
        """One attempt; a death is expected where a fault is ordered."""
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
            raise TrainingError(f"the run {name} failed with exit code {result.returncode}, see {log}")

    def _compare(self, phase: Phase, name: str) -> Outcome:
        straight, killed = self.directory / "straight", self.directory / name
        expected, found = _losses(straight), _losses(killed)
        assert len(expected) == len(found) == self.steps, "an epoch more or less"
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
            is_digest_right=digest == expected_digest(self._sampler, self._image_ids, steps=self.steps),
            num_different_weights=len(content.different)
            + len(content.only_in_first)
            + len(content.only_in_second),
            is_elastic=self.is_elastic,
        )

    def _repeated_steps(self, name: str) -> int:
        """How far each attempt had come, less where the next one began."""
        log = (self.directory / name / "training.log").read_text()
        begun = [int(step) for step in re.findall(r"(?:starting at|continuing after) step (\d+)", log)]
        strikes = [struck(self.directory / f"{name}-{number}") for number in range(1, len(self.workers))]
        killed = [strike.step for strike in strikes if strike is not None]
        return sum(came - began for came, began in zip(killed, begun[1:], strict=True))


def _losses(run_dir: Path) -> list[float]:
    with (run_dir / "metrics_per_batch.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]

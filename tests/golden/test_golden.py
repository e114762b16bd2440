"""Every number of a few runs and of a small study is what it was, to the last bit.

The numbers belong to a release of torch and a CPU (machine.json): on others, which round differently, only the first
losses are compared, up to rounding. `pytest tests/golden --update-golden` records them anew; CHANGELOG, "Numbers
changed", then says why.
"""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest

from raydet.engine.process import run_process
from raydet.parallel.collectives import World
from tests.golden.runs import CASES, blocks, experiment_of, journal, machine, table
from tests.study.conftest import tune

GOLDEN = Path(__file__).parent
MACHINE = GOLDEN / "machine.json"


@pytest.fixture(scope="module")
def update(request: pytest.FixtureRequest) -> bool:
    is_asked: bool = request.config.getoption("--update-golden")
    if is_asked:
        MACHINE.write_text(json.dumps(machine(), indent=2) + "\n")
    return is_asked


def is_same_machine() -> bool:
    recorded: object = json.loads(MACHINE.read_text())
    return recorded == machine()


def check(name: str, text: str, *, update: bool) -> None:
    path = GOLDEN / name
    if update:
        path.write_text(text)
    elif is_same_machine():
        assert text == path.read_text(), (
            f"{name}: --update-golden records the new numbers, CHANGELOG says why"
        )


def check_first_losses(name: str, text: str) -> None:
    """On any machine: the same weights, the same images, other rounding."""
    (new, *_), (old, *_) = (csv.DictReader(io.StringIO(t)) for t in (text, (GOLDEN / name).read_text()))
    assert new.keys() == old.keys()
    assert [float(value) for value in new.values()] == pytest.approx(
        [float(value) for value in old.values()], rel=1e-3
    )


@pytest.mark.parametrize("case", CASES)
def test_run(case: str, update: bool, tmp_path: Path) -> None:
    run_process(experiment_of(case), run_dir=tmp_path, world=World())
    losses = table(tmp_path / "metrics_per_batch.csv")
    assert losses.count("\n") > 20
    check(f"{case}_losses.csv", losses, update=update)
    check(f"{case}_epochs.csv", table(tmp_path / "metrics_per_epoch.csv"), update=update)
    if case == "demo":
        newest = max((tmp_path / "checkpoints").iterdir())
        check("demo_checkpoint.json", blocks(newest), update=update)
    check_first_losses(f"{case}_losses.csv", losses)


@pytest.mark.ray
def test_study(update: bool, tmp_path: Path) -> None:
    arguments = ("--cpus-per-worker", "1", "--no-report", "--tracking-uri", "none")
    done = tune(tmp_path, *arguments, space="three_trials")
    assert done.returncode == 0, done.stderr
    check("study_summary.csv", table(tmp_path / "gaff" / "summary_all_experiments.csv"), update=update)
    check("study_journal.jsonl", journal(tmp_path / "gaff" / "journal.jsonl"), update=update)

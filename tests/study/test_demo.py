"""What a newcomer sees first: the study of `make demo`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from raydet.cli.spaces import load_space
from raydet.recipes import recipe
from raydet.report.analysis import analyse
from raydet.report.study import open_study
from raydet.tune.journal import read_journal
from raydet.tune.phases import all_trials, num_undecided_trials

ROOT = Path(__file__).parents[2]


def demo_command() -> list[str]:
    """The arguments behind `python` in the Makefile's rule."""
    lines = (ROOT / "Makefile").read_text().split("\ndemo: setup\n")[1].splitlines()
    return lines[0].split()[1:]


def test_the_demo_is_small(tmp_path: Path) -> None:
    study = load_space("gaff_demo", recipe("tiny"), {})
    journal = read_journal(tmp_path)
    decided = len(all_trials(study, journal, 3))
    assert decided + num_undecided_trials(study, journal, 3) == 24


@pytest.mark.slow
def test_the_demo_has_something_to_say(tmp_path: Path) -> None:
    """That fusion beats each sensor alone is supported, also on fresh seeds; a factor that cannot matter is not told
    from noise.
    """
    command = demo_command()
    command[command.index("--storage") + 1] = str(tmp_path)
    subprocess.run([sys.executable, *command], cwd=tmp_path, check=True, capture_output=True)
    analysis = analyse(open_study(tmp_path / "gaff_demo"))
    outcomes = {found.hypothesis.name: found.outcome for found in analysis.hypotheses}
    assert outcomes["H1"] == "supported"
    assert outcomes["H0"] != "supported"
    assert analysis.confirmation is not None
    assert analysis.confirmation.verdict == "A is better"
    assert (tmp_path / "gaff_demo" / "report" / "report.html").is_file()
    assert (tmp_path / "mlflow.db").is_file()

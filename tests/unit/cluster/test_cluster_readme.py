"""The commands in cluster/README.md and in the RayJob: their options exist, their files are there."""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from filled import CLUSTER

from raydet.cli import main
from raydet.cli.spaces import space_names

README = (CLUSTER / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
SUBMITTED = [line.split(" -- ")[1] for block in BLOCKS for line in block.splitlines() if "job submit" in line]


def check_tune(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = shlex.split(command)
    assert words[:3] == ["python", "-m", "raydet.tune"]
    with pytest.raises(SystemExit) as caught:
        main(["tune", *words[3:], "--help"])
    assert caught.value.code == 0
    help_text = capsys.readouterr().out
    for option in (word for word in words if word.startswith("--")):
        assert option in help_text
    assert words[words.index("--space") + 1] in space_names()


def test_there_is_one_for_each_cloud() -> None:
    assert len(SUBMITTED) == 4


@pytest.mark.parametrize("command", sorted(set(SUBMITTED)))
def test_submitted_commands_parse(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    check_tune(command, capsys)


def test_the_command_of_the_job_parses(
    documents: Callable[[str], list[dict[str, Any]]], capsys: pytest.CaptureFixture[str]
) -> None:
    (job,) = documents("kuberay/rayjob.yaml")
    check_tune(job["spec"]["entrypoint"], capsys)


def test_files_that_it_names_exist() -> None:
    named = set(re.findall(r"(?<![\w/-])cluster/[\w/.-]+\w", README))
    assert {"cluster/aws.yaml", "cluster/gcp.yaml", "cluster/kuberay/rayjob.yaml"} <= named
    assert [name for name in named if not (CLUSTER.parent / name).exists()] == []


@pytest.mark.parametrize("block", BLOCKS)
def test_the_shell_understands_every_block(block: str) -> None:
    done = subprocess.run(["bash", "-n"], input=block, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

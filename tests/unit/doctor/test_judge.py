"""From facts to findings: every threshold from both sides, and the floors against pyproject.toml."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from raydet.doctor import judge
from raydet.doctor.facts import Cuda, NodeFacts, Space
from raydet.doctor.finding import Finding, exit_code, findings_as_json
from raydet.doctor.judge import FLOORS, GIB, MIB, Clock
from raydet.errors import EXIT_OK, EXIT_USAGE

NEW = {"python": "3.12.3", "ray": "2.60.0", "torch": "2.15.0+cu130", "mlflow": "3.17.2"}
H100 = Cuda(built_for="13.0", driver_takes=13000, devices=("H100", "H100"), nccl="2.30.7", error="")


def facts(**changes: Any) -> NodeFacts:
    known = NodeFacts(
        host="node",
        versions=NEW,
        cpu="EPYC",
        cores=2,
        has_bf16=False,
        has_driver=True,
        cuda=H100,
        shared_memory=Space("/dev/shm", 8 * GIB, 8 * GIB),
        temporary=Space("/tmp", 100 * GIB, 50 * GIB),
    )
    return dataclasses.replace(known, **changes)


def test_the_floors_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    declared = {}
    for line in project["dependencies"]:
        found = re.match(r"(\w+)(?:\[[^\]]*\])?>=([\d.]+)", line)
        assert found is not None, line
        declared[found[1]] = found[2]
    assert {name: declared[name] for name in FLOORS} == FLOORS


def test_versions() -> None:
    assert [finding.level for finding in judge.versions("node", facts())] == ["ok"]
    old = judge.versions("node", facts(versions=NEW | {"ray": "2.9.3"}))
    assert [finding.level for finding in old] == ["failure"]
    without = {name: version for name, version in NEW.items() if name not in ("mlflow", "torch")}
    levels = {finding.text: finding.level for finding in judge.versions("node", facts(versions=without))}
    assert levels == {
        "node: torch is not installed": "failure",
        "node: mlflow is not installed": "warning",
    }


def test_a_cpu_without_bf16_is_reported() -> None:
    assert judge.cpu("node", facts()).text == (
        "node: 2 cores of EPYC, no bf16 instructions: training in bf16 on this CPU is refused"
    )
    assert judge.cpu("node", facts(has_bf16=True)).text == "node: 2 cores of EPYC, bf16"


def test_nodes_that_differ() -> None:
    assert judge.same_versions({"a": facts(), "b": facts()}) == []
    other = facts(versions=NEW | {"python": "3.11.7"})
    (finding,) = judge.same_versions({"a": facts(), "b": other, "c": facts()})
    assert finding.level == "failure"
    assert "3.12.3 on a c" in finding.text
    assert "3.11.7 on b" in finding.text


@pytest.mark.parametrize(
    ("changes", "declared", "level"),
    [
        ({}, 2, "ok"),
        ({}, None, "ok"),
        ({}, 4, "failure"),
        ({}, 1, "warning"),
        ({"has_driver": False, "cuda": Cuda("13.0", None, (), "2.30.7", "no driver")}, 0, "ok"),
        ({"has_driver": False, "cuda": Cuda("13.0", None, (), "2.30.7", "no driver")}, 1, "failure"),
        ({"cuda": Cuda(None, None, (), None, "")}, 0, "failure"),
        ({"cuda": Cuda("13.0", 12040, (), None, "the driver is too old")}, 2, "failure"),
    ],
)
def test_gpus(changes: dict[str, Any], declared: int | None, level: str) -> None:
    assert judge.gpus("node", facts(**changes), declared).level == level


@pytest.mark.parametrize(
    ("driver_takes", "level"), [(13010, "ok"), (13000, "ok"), (12090, "failure"), (None, "failure")]
)
def test_driver(driver_takes: int | None, level: str) -> None:
    cuda = dataclasses.replace(H100, driver_takes=driver_takes)
    (finding,) = judge.driver("node", facts(cuda=cuda))
    assert finding.level == level


def test_a_driver_of_an_older_minor_release() -> None:
    cuda = dataclasses.replace(H100, built_for="13.2", driver_takes=13000)
    (finding,) = judge.driver("node", facts(cuda=cuda))
    assert finding.level == "warning"
    assert judge.driver("node", facts(has_driver=False)) == []


@pytest.mark.parametrize(
    ("free", "level"), [(63 * MIB, "failure"), (64 * MIB, "warning"), (GIB, "ok"), (None, "warning")]
)
def test_shared_memory(free: int | None, level: str) -> None:
    space = None if free is None else Space("/dev/shm", 8 * GIB, free)
    assert judge.shared_memory("node", facts(shared_memory=space)).level == level


@pytest.mark.parametrize(
    ("total", "free", "level"),
    [
        (30 * GIB, 20 * GIB, "ok"),
        (30 * GIB, 19 * GIB, "warning"),
        (30 * GIB, 2 * GIB - 1, "failure"),
        (1000 * GIB, 49 * GIB, "failure"),  # enough space, but 95.1 % full
        (1000 * GIB, 51 * GIB, "ok"),
    ],
)
def test_disk(total: int, free: int, level: str) -> None:
    assert judge.disk("node", Space("/tmp", total, free)).level == level


@pytest.mark.parametrize(
    ("ahead_s", "error_s", "level"),
    [
        (0.5, 0.1, "ok"),
        (-2.5, 0.1, "warning"),
        (2.5, 1.0, "ok"),  # it may be 1.5
        (400.0, 0.1, "failure"),
        (-400.0, 0.1, "failure"),
    ],
)
def test_clock(ahead_s: float, error_s: float, level: str) -> None:
    assert judge.clock("node", Clock(ahead_s, error_s)).level == level


def test_lines_and_exit_code() -> None:
    good = Finding("ray", "ok", "it answers")
    warning = Finding("clock", "warning", "two\nlines", "set it")
    bad = Finding("token", "failure", "it is open", "set a token")
    assert warning.as_line() == "warning clock         two lines; set it"
    assert exit_code([good, warning]) == EXIT_OK
    assert exit_code([good, bad]) == EXIT_USAGE
    assert findings_as_json([bad]) == {
        "ok": False,
        "findings": [
            {"check": "token", "level": "failure", "text": "it is open", "remedy": "set a token"},
        ],
    }

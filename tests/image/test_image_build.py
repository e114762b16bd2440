"""The image is built here step by step, and what comes out runs studies and Ray nodes as its own user."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.image.builder import Builder, missing
from tests.study.conftest import tune_arguments

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
SENT = ("Dockerfile", ".dockerignore", "pyproject.toml", "README.md", "raydet", "tune_spaces", "cluster")


@dataclass(frozen=True)
class Built:
    """The image, what its building said, and what it was made from."""

    builder: Builder
    base: str
    context: Path
    said: str


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Built]:
    store = tmp_path_factory.mktemp("image")
    if reason := missing(store):
        pytest.skip(reason)
    context = tmp_path_factory.mktemp("context")
    for name in SENT:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, context / name)
    (context / "secrets.env").write_text("AWS_SECRET_ACCESS_KEY=planted")
    (context / "raydet" / "__pycache__").mkdir(exist_ok=True)
    (context / "raydet" / "__pycache__" / "left.pyc").write_bytes(b"")
    builder = Builder(store)
    try:
        base = builder.make_base("bookworm")
        done = builder.build(context, base)
        assert done.returncode == 0, done.stdout[-4000:]
        yield Built(builder, base, context, done.stdout)
    finally:
        builder.remove()


@pytest.fixture
def container(built: Built) -> str:
    return built.builder.start()


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stdout[-4000:]
    return done.stdout.splitlines()


def test_every_step_has_run(built: Built) -> None:
    """Stages have their own counts, as `[2/3] STEP 5/9`."""
    steps = re.findall(r"^(\[\d+/\d+\]) STEP (\d+)/(\d+)", built.said, flags=re.MULTILINE)
    stages = {(stage, int(last)) for stage, _, last in steps}
    assert len(stages) == 3
    assert {(stage, int(step)) for stage, step, _ in steps} == {
        (stage, step) for stage, last in stages for step in range(1, last + 1)
    }


def test_it_holds_what_it_needs_and_nothing_else(built: Built, container: str) -> None:
    found = lines(
        built.builder.run(container, "find", "/opt/raydet", "-maxdepth", "2", "-not", "-path", "*/.venv/*")
    )
    assert not any("secrets" in path for path in found)
    top = {path.removeprefix("/opt/raydet/").split("/")[0] for path in found[1:]}
    assert top == {
        ".venv",
        "pyproject.toml",
        "README.md",
        "raydet",
        "raydet.egg-info",
        "tune_spaces",
        "cluster",
    }
    assert "/opt/raydet/raydet/__pycache__" in found  # compiled when it was built ...
    left = built.builder.run(container, "find", "/opt/raydet", "-name", "left.pyc")
    assert lines(left) == []  # ... and not brought along


def test_its_user_is_no_root_and_cannot_change_the_code(built: Built, container: str) -> None:
    assert built.builder.config()["User"] == "1000:1000"
    done = built.builder.run(
        container, "sh", "-c", "id -u; pwd; touch here; touch /opt/raydet/raydet/x 2>&1; true"
    )
    uid, home, refused = lines(done)
    assert (uid, home) == ("1000", "/home/raydet")
    assert "Permission denied" in refused


def test_a_login_shell_finds_the_commands(built: Built, container: str) -> None:
    """Ray's launcher and KubeRay start everything in one, which sets PATH anew."""
    script = "command -v python ray raydet mlflow; command -v rsync ssh wget"
    done = built.builder.run(container, "bash", "--login", "-c", script)
    places = {str(Path(path).parent) for path in lines(done)}
    assert places == {"/opt/raydet/.venv/bin", "/usr/bin"}


def test_the_demo(built: Built, container: str) -> None:
    """Its command, with two trials of seconds; without a network."""
    command = ["python", "-m", "raydet.tune", *tune_arguments("gaff_phase2"), "--max-trials", "2"]
    done = built.builder.run(container, *command, "--storage", "runs/demo", timeout_s=1800)
    said = lines(done)
    assert any(line.strip().startswith("gaff: 2 of ") for line in said), said
    owners = lines(built.builder.run(container, "stat", "-c", "%u", "runs/demo/gaff/journal.jsonl"))
    assert owners == ["1000"]


# psutil, for the image has no pkill.
NODE = """
set -eu
ray get-auth-token --generate > /dev/null
ray start --head --num-cpus=1 --object-store-memory=100000000 > /dev/null
health() { if "$@" > /dev/null 2>&1; then echo healthy; else echo ill; fi; }
health "$@"
python -c 'import psutil
for process in psutil.process_iter():
    if process.cmdline()[:1] == ["ray::DashboardAgent"]:
        process.suspend()
        print("agent stopped")'
health "$@"
"""


def test_the_health_check(built: Built, container: str) -> None:
    """A container without Ray, a Ray node, a Ray node whose agent no longer answers."""
    kind, *check = built.builder.config()["Healthcheck"]["Test"]
    assert kind == "CMD"
    lines(built.builder.run(container, *check))
    done = built.builder.run(container, "bash", "-c", NODE, "bash", *check, timeout_s=900)
    assert lines(done)[-3:] == ["healthy", "agent stopped", "ill"]


def test_other_code_leaves_the_large_layer_as_it_is(built: Built) -> None:
    with (built.context / "raydet" / "__init__.py").open("a") as module:
        module.write("# changed\n")
    done = built.builder.build(built.context, built.base)
    assert done.returncode == 0, done.stdout[-4000:]
    last_stage = done.stdout[done.stdout.index("[3/3] STEP 1") :]
    copied, code = last_stage.index("COPY --from=dependencies"), last_stage.index("COPY raydet raydet")
    assert "Using cache" in last_stage[copied:code].split("STEP")[0]
    assert "Using cache" not in last_stage[code:].split("STEP")[0]


def test_an_unknown_device_is_refused(built: Built) -> None:
    done = built.builder.build(built.context, built.base, "--build-arg=DEVICE=tpu")
    assert done.returncode != 0
    assert "DEVICE must be gpu or cpu, not 'tpu'" in done.stdout

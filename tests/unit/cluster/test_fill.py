"""Values of manifests: filled, missing, or such that they would break out."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from fill import VARIABLE, FillError, fill
from filled import CLUSTER, DIGEST, VALUES


def test_shell_variables_stay() -> None:
    text = "ray start --address=$RAY_HEAD_IP:6379 ${HOME} ${RAYDET_BUCKET}"
    filled = fill(text, {"RAYDET_BUCKET": "ours"}, source="x.yaml")
    assert filled == "ray start --address=$RAY_HEAD_IP:6379 ${HOME} ours"


def test_all_missing_values_are_named_at_once() -> None:
    with pytest.raises(FillError, match=r"^x\.yaml: RAYDET_A, RAYDET_B not set; export it"):
        fill("${RAYDET_B} ${RAYDET_A} ${RAYDET_C}", {"RAYDET_A": "", "RAYDET_C": "c"}, source="x.yaml")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("RAYDET_IMAGE", "raydet:latest"),
        ("RAYDET_REDIS_IMAGE", "redis@sha256:0123"),
        ("RAYDET_BUCKET", "s3://bucket"),
        ("RAYDET_NFS", 'host:/"; rm -rf /; "'),
        ("RAYDET_NFS", "host:/$(id)"),
        ("RAYDET_DATA", "gs://bucket\nkind: Secret"),
    ],
)
def test_unwanted_values_are_refused(name: str, value: str) -> None:
    with pytest.raises(FillError, match=rf"^x\.yaml: {name} must be .*, got "):
        fill("${" + name + "}", {name: value}, source="x.yaml")


def test_command_line(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("image: ${RAYDET_IMAGE}\n")
    command = [sys.executable, str(CLUSTER / "fill.py"), str(tmp_path / "a"), str(tmp_path / "b")]
    image = f"raydet{DIGEST}"
    done = subprocess.run(command, env={"RAYDET_IMAGE": image}, capture_output=True, text=True, check=True)
    assert done.stdout == f"image: {image}\n---\nimage: {image}\n"
    refused = subprocess.run(command, env={}, capture_output=True, text=True)
    assert refused.returncode == 2
    assert re.fullmatch(r".*/a: RAYDET_IMAGE not set; .*\n", refused.stderr)
    assert refused.stdout == ""


def test_readme_names_every_value() -> None:
    manifests = [path for path in CLUSTER.rglob("*") if path.suffix in (".yaml", ".json")]
    used = {name for path in manifests for name in VARIABLE.findall(path.read_text())}
    assert used == set(VALUES)
    exported = set(
        re.findall(r"^export (RAYDET_\w+)=", (CLUSTER / "README.md").read_text(), flags=re.MULTILINE)
    )
    assert used <= exported

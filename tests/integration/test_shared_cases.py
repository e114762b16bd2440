"""Public reports of what people met with other tools, reproduced: what raydet makes of each.

python -m pytest -m slow tests/integration/test_shared_cases.py -s     prints one line per case
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

CASES = Path(__file__).parents[3] / "shared" / "cases"

GOOD = "4 images (3 train, 1 val), rgb, thermal; 0 left out, 0 not decoded"
EXPECTED: Mapping[str, tuple[str, Mapping[str, int]]] = {
    "02_macos_appledouble": (
        "hidden files are passed over",
        {re.escape(GOOD): 3, r"exit 0": 3, r"4 images in 1 shards": 1, r"left out": 3},
    ),
    "03_ipynb_checkpoints": (
        "hidden directories are passed over",
        {re.escape(GOOD): 2, r"exit 0": 2, r"4 images in 1 shards": 2},
    ),
    "04_exporter_ids": (
        "ids are compared by value",
        {re.escape(GOOD): 5, r"8 boxes: person 4, car 4": 5, r"exit 0": 5},
    ),
    "05_yolo_polygons": ("the box around an outline", {r"8 boxes: person 4, car 4": 1, r"exit 0": 1}),
    "06_roboflow_root_category": (
        "a category that groups others is no class",
        {
            r'"classes": \["person", "car"\]': 1,
            r'"classes": \["person"\]': 1,
            r"only groups others": 2,
            "exit 0": 2,
        },
    ),
    "07_windows_backslashes": (
        "backslashes separate directories; drives are refused",
        {re.escape(GOOD): 1, r"exit 0": 1, r"error: .*an absolute path of Windows": 1, r"exit 3": 1},
    ),
    "09_unlabelled_predict": (
        "predict needs no labels",
        {r"detections in 3 images": 7, r"train: exit 0": 1, r"^exit 0": 7},
    ),
    "10_mlflow_deleted_experiment": (
        "a deleted experiment is named, with the remedy",
        {r"first: exit 0": 1, r"error: .*raydet.*deleted.*mlflow experiments restore": 2, r"exit 2": 2},
    ),
    "12_long_tmpdir": (
        "a long TMPDIR does not matter; a long RAY_TMPDIR is refused",
        {r"^exit 0": 2, r"error: RAY_TMPDIR is too long": 1, r"^exit 2": 1},
    ),
    "15_linked_directories": (
        "links are refused, with the setting that allows them",
        {r"error: .*is a link to .*follow_links=STORE": 2, r"exit 3": 2},
    ),
    "18_score_results": (
        "one reader of COCO json",
        {
            r"2 images, 2 objects, 2 detections": 7,
            r"2 images, 2 objects, 0 detections": 1,
            r"error: wrapped.json: expected a list of objects, got an object with 'annotations'": 1,
            r"error: unknown_image.json: detection 2 has the unknown id 3": 1,
            r"error: truth_latin.json: .*as UTF-8": 1,
        },
    ),
    "19_mlflow_plain_directory": (
        "directories are refused, and nothing is left behind; a missing one is made",
        {r"error: .*sqlite:///": 2, r"^exit 2": 2, r"^exit 0": 1, r"^mlruns": 0},
    ),
    "23_test_set_lacks_a_class": (
        "a set is read with the run's classes",
        {r"train: exit 0": 1, r"3 images \(voc\)": 2, r"detections in 3 images": 1, r"^exit 0": 1},
    ),
}
"""By case: what is right, and how many lines of the output match each pattern."""

pytestmark = pytest.mark.skipif(
    not CASES.is_dir(), reason="the cases are not beside the clone: ../shared/cases"
)


def test_every_case_is_known() -> None:
    assert sorted(EXPECTED) == sorted(path.name for path in CASES.glob("[0-9]*"))


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPECTED)
def test_a_case(name: str, tmp_path: Path) -> None:
    for part in (name, "lib"):
        shutil.copytree(CASES / part, tmp_path / part)
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(path.stat().st_mode | 0o200)
    interpreter = Path(sys.executable)
    environment = {
        **os.environ,
        "RAYDET": f"{interpreter} -m raydet",
        "PYTHON": str(interpreter),
        "PATH": f"{interpreter.parent}:{os.environ['PATH']}",
        "LONG_ROOT": str(tmp_path / "long"),
    }
    if (tmp_path / name / "make.sh").exists():  # links do not survive every copy
        subprocess.run(
            ["sh", "make.sh"], cwd=tmp_path / name, env=environment, check=True, capture_output=True
        )
    result = subprocess.run(
        ["sh", "run.sh"],
        cwd=tmp_path / name,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    said, patterns = EXPECTED[name]
    found = {pattern: len(re.findall(pattern, result.stdout, re.MULTILINE)) for pattern in patterns}
    sys.stdout.write(f"{name:32} {'as expected' if found == patterns else 'OTHERWISE':12} {said}\n")
    assert found == patterns, result.stdout
    assert "Traceback" not in result.stdout

"""The constraints file pins and hashes all that raydet needs, and installs keep to it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from itertools import chain
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
CONSTRAINTS = ROOT / "cluster" / "constraints.txt"


def records() -> list[str]:
    """One per pinned release, with its hashes."""
    lines = [line for line in CONSTRAINTS.read_text().splitlines() if not line.startswith("#")]
    return "\n".join(lines).replace("\\\n", " ").splitlines()


def pins() -> dict[str, list[str]]:
    """Name -> its versions: some have one for each range of Pythons."""
    found: dict[str, list[str]] = {}
    for record in records():
        name, version = record.split()[0].split("==")
        found.setdefault(canonicalize_name(name), []).append(version)
    return found


def test_every_line_is_a_pin_with_hashes() -> None:
    pin = re.compile(r"[\w.-]+==[\w.]+( ; [^;]+?)?( +--hash=sha256:[0-9a-f]{64})+")
    assert len(records()) > 100
    assert [record[:80] for record in records() if not pin.fullmatch(record)] == []


def test_every_dependency_is_pinned_within_its_bounds() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *chain.from_iterable(project["optional-dependencies"].values())]
    found = pins()
    for requirement in map(Requirement, wanted):
        versions = found.get(canonicalize_name(requirement.name), [])
        assert versions, f"{requirement.name} is not in {CONSTRAINTS.name}: make it anew, its head says how"
        assert all(requirement.specifier.contains(version) for version in versions), requirement


def test_another_file_of_the_same_name_and_version_is_refused(tmp_path: Path) -> None:
    uv = shutil.which("uv", path=str(Path(sys.executable).parent)) or shutil.which("uv")
    if uv is None:
        pytest.skip("uv is not installed")
    (version,) = pins()["idna"]
    release = f"idna-{version}"
    with zipfile.ZipFile(tmp_path / f"{release}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(
            f"{release}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: idna\nVersion: {version}\n"
        )
        wheel.writestr(
            f"{release}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(f"{release}.dist-info/RECORD", "")
    command = [uv, "pip", "install", "--no-config", "--offline", "--no-index", f"--find-links={tmp_path}"]
    command += [
        f"--target={tmp_path / 'there'}",
        f"--python={sys.executable}",
        f"--cache-dir={tmp_path / 'cache'}",
    ]
    free = subprocess.run([*command, "idna"], capture_output=True, text=True)
    assert free.returncode == 0, free.stderr
    checked = subprocess.run(
        [*command, "--reinstall", f"--constraints={CONSTRAINTS}", "idna"], capture_output=True, text=True
    )
    assert checked.returncode != 0
    assert "Hash mismatch" in checked.stderr

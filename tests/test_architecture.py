"""The import rules of the house, walked over every file: dependencies point down, every giant has one door.

A package may import itself and the layers below it. `__main__` modules are doors to the command line and are left out.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from raydet.metrics.names import MASK_NAMES, METRIC_NAMES, MISS_RATE

ROOT = Path(__file__).parents[1]

LAYERS: tuple[tuple[str, ...], ...] = (
    ("raydet.redact",),
    ("raydet.errors",),
    ("raydet.config",),
    ("raydet.cpu", "raydet.recipes", "raydet.structures", "raydet.ops", "raydet.files"),
    ("raydet.models", "raydet.data", "raydet.parallel", "raydet.metrics"),
    ("raydet.plan", "raydet.stats", "raydet.check", "raydet.runs", "raydet.tasks"),
    ("raydet.resilience", "raydet.track"),
    ("raydet.checkpoint",),
    ("raydet.engine",),
    ("raydet.launch", "raydet.bench", "raydet.export"),
    ("raydet.tune",),
    ("raydet.report", "raydet.verify", "raydet.doctor"),
    ("tune_spaces",),
    ("raydet.cli",),
)
"""From the ground up: packages, and the few modules that stand beside them. Members of one layer do not import one
another."""

FENCES: dict[str, tuple[str, ...]] = {
    "ray": (
        "raydet/launch/",
        "raydet/tune/",
        "raydet/verify/nodes.py",
        "raydet/doctor/cluster.py",
        "raydet/data/convert.py",
    ),
    "grpc": ("raydet/launch/head.py", "raydet/launch/ray_private.py"),
    "mlflow": ("raydet/track/mlflow.py",),
    "timm": ("raydet/models/backbones/hiera.py", "raydet/models/backbones/timm.py"),
    "huggingface_hub": ("raydet/models/pretrained/hub.py",),
    "matplotlib": ("raydet/report/",),
    "pycocotools": ("raydet/metrics/reference.py",),
    "pyarrow": ("raydet/data/",),
    "h5py": ("raydet/files/events/hdf5.py",),
    "hdf5plugin": ("raydet/files/events/hdf5.py",),
}

TARGETS = {"Boxes", "Mask", "BoxBatch", "MaskBatch"}
TARGET_ROOMS = ("raydet/structures.py", "raydet/data/geometry.py", "raydet/data/shards/")
"""The only files that tell one kind of target from another."""

FORBIDDEN_NAMES = {"util", "utils", "misc", "helper", "helpers", "common", "manager"}

FILES = sorted(path for package in ("raydet", "tune_spaces") for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            # `from raydet.tune import study` imports a module, not a name.
            yield from (
                f"{node.module}.{alias.name}"
                if (ROOT / node.module.replace(".", "/") / f"{alias.name}.py").exists()
                else node.module
                for alias in node.names
            )


def layer_of(module: str) -> tuple[int, str] | None:
    """Height and member of the longest matching entry."""
    matches = [
        (len(member), height, member)
        for height, layer in enumerate(LAYERS)
        for member in layer
        if module == member or module.startswith(f"{member}.")
    ]
    if not matches:
        return None
    _, height, member = max(matches)
    return height, member


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_dependencies_point_down(path: Path) -> None:
    module = module_name(path)
    if path.name == "__main__.py" or module == "raydet":
        return
    mine = layer_of(module)
    assert mine is not None, f"{module} stands in no layer; give it one in {Path(__file__).name}"
    for imported in imports_of(path):
        other = layer_of(imported)
        if other is None or other == mine:
            continue
        assert other[0] < mine[0], f"{module} (layer {mine[0]}) imports {imported} (layer {other[0]})"


def test_modules_import_one_another_in_no_circle() -> None:
    modules = {module_name(path): path for path in FILES if path.name != "__main__.py"}
    graph = {
        name: {other for other in imports_of(path) if other in modules} for name, path in modules.items()
    }
    tuple(TopologicalSorter(graph).static_order())  # raises CycleError, which names the circle


@pytest.mark.parametrize("package", FENCES)
def test_giants_come_in_by_one_door(package: str) -> None:
    offenders = [
        str(path.relative_to(ROOT))
        for path in FILES
        if any(name == package or name.startswith(f"{package}.") for name in imports_of(path))
        and not str(path.relative_to(ROOT)).startswith(FENCES[package])
    ]
    assert offenders == []


def test_metrics_are_named_where_they_belong() -> None:
    """Everything else gets the metric, or its name, as data."""
    known = re.compile(r"\b(" + "|".join((*METRIC_NAMES, *MASK_NAMES, MISS_RATE)) + r")\b")
    allowed = ("raydet/metrics/", "raydet/tasks/", "raydet/recipes/", "tune_spaces/")
    offenders = [
        f"{path.relative_to(ROOT)}:{number}: {text!r}"
        for path in FILES
        if not str(path.relative_to(ROOT)).startswith(allowed)
        for number, text in texts_of(path)
        if known.search(text)
    ]
    assert offenders == []


def test_few_files_tell_targets_apart() -> None:
    offenders = [
        f"{path}:{node.lineno}"
        for path in FILES
        if not str(path.relative_to(ROOT)).startswith(TARGET_ROOMS)
        for node in ast.walk(ast.parse(path.read_text()))
        if (isinstance(node, ast.MatchClass) and ast.unparse(node.cls) in TARGETS)
        or (
            isinstance(node, ast.Call)
            and ast.unparse(node.func) == "isinstance"
            and TARGETS & {name.id for name in ast.walk(node.args[1]) if isinstance(name, ast.Name)}
        )
    ]
    assert offenders == []


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """The string literals of a file but its docstrings, with their lines."""
    tree = ast.parse(path.read_text())
    docstrings = {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node not in docstrings:
            yield node.lineno, node.value


def test_no_file_is_named_after_nothing() -> None:
    assert [path for path in FILES if path.stem in FORBIDDEN_NAMES] == []


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_rooms_stay_small(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 500, f"{path} has more than 500 lines"
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            assert lines <= 100, f"{path}:{node.lineno} {node.name} has {lines} lines"


def test_nothing_unpickles() -> None:
    for path in FILES:
        names = set(imports_of(path))
        assert not names & {"pickle", "cloudpickle", "joblib", "dill"}, path
        assert "allow_pickle=True" not in path.read_text(), path


def test_one_file_reads_pytorchs_format_and_only_tensors() -> None:
    calls = [
        (str(path.relative_to(ROOT)), [ast.unparse(keyword) for keyword in node.keywords])
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) in {"torch.load", "load_state_dict_from_url"}
    ]
    assert calls == [("raydet/models/pretrained/convert.py", ["map_location='cpu'", "weights_only=True"])]


@pytest.mark.parametrize(
    "code", ["import raydet", "import raydet.cli", "import raydet.config, raydet.recipes"]
)
def test_light_imports_stay_light(code: str) -> None:
    check = f"{code}; import sys; print(sorted({{'torch', 'ray', 'mlflow', 'numpy'}} & set(sys.modules)))"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_driver_of_a_study_does_without_torch() -> None:
    """Which would take half of its memory; models are checked and trained in other processes."""
    check = "import raydet.tune.run, raydet.tune.ray_tune, sys; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_help_imports_next_to_nothing() -> None:
    """So that it answers at once: pydantic's types of the configs alone take a quarter of a second."""
    check = (
        "import contextlib, io, sys; from raydet.cli import main\n"
        "with contextlib.suppress(SystemExit), contextlib.redirect_stdout(io.StringIO()): main(['--help'])\n"
        "print(sorted({name.split('.')[0] for name in sys.modules if not name.startswith('_')}))"
    )
    found = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    others = set(ast.literal_eval(found.stdout)) - set(sys.stdlib_module_names)
    assert others <= {"annotated_doc", "click", "raydet", "shellingham", "typer", "typing_extensions"}


def test_the_core_imports_without_ray_and_mlflow() -> None:
    code = (
        "import sys; sys.modules['ray'] = sys.modules['mlflow'] = None; "
        "import raydet.engine.process, raydet.engine.loop, raydet.models.build, raydet.data.build"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)

"""README and docs are up to date: links, commands, options, settings and files exist, Python blocks run."""

from __future__ import annotations

import itertools
import re
import runpy
import shlex
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

import raydet.errors
from raydet.cli import app, main
from raydet.cli.spaces import space_names
from raydet.config import Experiment, apply_overrides, parse_override
from raydet.engine.preflight import check, check_decidable
from raydet.recipes import RECIPES, recipe

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.glob("*.md"))]
PROGRAMS = {"export", "make", "mlflow", "pytest", "python", "ray", "raydet", "source"}
"""First words of commands; `raydet`, `python`, `pytest` and `make` are looked into."""
OTHERS_OPTIONS = {
    "--backend-store-uri",
    "--head",
    "--help",
    "--runtime-env-json",
    "--update-golden",
    "--working-dir",
}
"""Options of programs that are not ours, and of our tests."""

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


def prose(page: Path) -> str:
    """A page without its blocks."""
    return re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)


def command_lines(page: Path) -> list[str]:
    text = "\n".join(blocks(page, "sh")).replace("\\\n", " ")
    lines = [line.split("  #")[0].strip() for line in text.splitlines()]
    return [line for line in lines if line]


def commands(page: Path) -> Iterator[list[str]]:
    """All commands as words; those that `ray job submit` and `raydet chaos` start as commands of their own."""
    for line in command_lines(page):
        words = shlex.split(line)
        while re.fullmatch(r"[A-Z_]+=.*", words[0]):  # VARIABLE=value command
            words = words[1:]
        if "--" in words:
            at = words.index("--")
            yield words[:at]
            words = words[at + 1 :]
            words = ["raydet", *words] if words[0] == "tune" else words
        yield words


def raydet_commands() -> list[list[str]]:
    found = []
    for words in (words for page in PAGES for words in commands(page)):
        if words[:2] == ["python", "-m"]:
            found.append([words[2].removeprefix("raydet."), *words[3:]])
        elif words[0] == "raydet":
            found.append(words[1:])
    return found


def option_names(command: Any) -> set[str]:
    """The options of a command of Typer, and of all commands below it."""
    names = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    return names.union(*map(option_names, getattr(command, "commands", {}).values()))


def anchors(page: Path) -> set[str]:
    """Anchors of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@each_page
def test_links_exist(page: Path) -> None:
    for link in re.findall(r"\]\(([^)]+)\)", page.read_text()):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@each_page
def test_files_exist(page: Path) -> None:
    """Code and documents that the text names, in the project or below `raydet/`."""
    files = list((ROOT / "raydet").rglob("*.py"))
    for name in re.findall(r"`([\w/.-]+\.(?:py|md)|(?:raydet|tests)/[\w/.-]+)`", prose(page)):
        is_known = (ROOT / name).exists() or any(str(path).endswith(f"/{name}") for path in files)
        assert is_known or f"Saved as `{name}`" in page.read_text(), name


def test_there_are_commands() -> None:
    assert len(raydet_commands()) >= 40
    assert "make demo" in command_lines(README)


@each_page
def test_programs_are_known(page: Path) -> None:
    assert [words for words in commands(page) if words[0] not in PROGRAMS] == []


@pytest.mark.parametrize("words", raydet_commands(), ids=" ".join)
def test_commands_parse(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` after the arguments is only reached if they parse, so every option exists."""
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    help_text = capsys.readouterr().out
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert option in help_text


@pytest.mark.parametrize("words", [w for w in raydet_commands() if "--set" in w], ids=" ".join)
def test_settings_are_valid(words: list[str]) -> None:
    name = words[words.index("--recipe") + 1] if "--recipe" in words else "rgbte_mit_b1"
    settings = [value for flag, value in itertools.pairwise(words) if flag == "--set"]
    apply_overrides(recipe(name), dict(parse_override(text) for text in settings))


def members(annotation: object) -> Iterator[object]:
    """The types of which an annotation is made, e.g. the configs of a union."""
    yield annotation
    for part in typing.get_args(annotation):
        yield from members(part)


@each_page
def test_config_paths_exist(page: Path) -> None:
    for text in re.findall(r"`(?:--set )?'?((?:task|data|model|optim|train)\.[a-z_.]+)", prose(page)):
        known: set[object] = {Experiment}
        for part in text.split("."):
            annotations = [
                c.model_fields[part].annotation for c in known if part in getattr(c, "model_fields", {})
            ]
            assert annotations, text
            known = set(itertools.chain.from_iterable(members(x) for x in annotations))


@each_page
def test_options_exist(page: Path) -> None:
    known = option_names(typer.main.get_command(app)) | OTHERS_OPTIONS
    assert set(re.findall(r"`(--[a-z][a-z-]+)", prose(page))) <= known


@each_page
def test_recipes_and_spaces_exist(page: Path) -> None:
    text = page.read_text()
    for name in re.findall(r"--recipe (\w+)", text):
        assert name in RECIPES
    for name in re.findall(r"--space ([\w/.]+)", text):
        assert name in space_names() or (ROOT / name).exists() or f"Saved as `{name}`" in text


def test_every_space_is_explained() -> None:
    text = (DOCS / "studies.md").read_text()
    assert [name for name in space_names() if f"`{name}`" not in text] == []


@each_page
def test_files_of_commands_exist(page: Path) -> None:
    for words in commands(page):
        if words[0] == "pytest" or (words[0] == "python" and not words[1].startswith("-")):
            assert all((ROOT / word).exists() for word in words[1:] if "/" in word), words


@each_page
def test_make_targets_exist(page: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    named = [words[1] for words in commands(page) if words[0] == "make"]
    for target in named + re.findall(r"`make (\w[\w-]*)`", prose(page)):
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target


@pytest.mark.parametrize(
    ("page", "code"),
    [(page, code) for page in PAGES for code in blocks(page, "python")],
    ids=lambda value: value.stem if isinstance(value, Path) else "",
)
def test_python_blocks_run(page: Path, code: str, tmp_path: Path) -> None:
    path = tmp_path / "block.py"
    path.write_text(code)
    names = runpy.run_path(str(path))
    if "study" in names:  # a space: what `raydet tune` checks before its first trial
        base: Experiment = names["study"](recipe("demo")).base
        task = names["task"](base)
        check(base, task, workers=1)
        check_decidable(base, task)


def test_the_readme_is_short() -> None:
    assert README.read_text().count("\n") <= 150


def test_every_exit_code_is_explained() -> None:
    text = (DOCS / "resilience.md").read_text()
    codes = {code for name, code in vars(raydet.errors).items() if name.startswith("EXIT_")}
    assert [code for code in codes if f"\n| {code} |" not in text] == []


def test_every_package_is_explained() -> None:
    text = (DOCS / "architecture.md").read_text()
    found = sorted((ROOT / "raydet").glob("[a-z]*/__init__.py")) + sorted((ROOT / "raydet").glob("[a-z]*.py"))
    names = [path.parent.name if path.name == "__init__.py" else path.stem for path in found]
    assert [name for name in names if f"`{name}`" not in text] == []


def run_script(name: str, *arguments: str) -> str:
    command = [sys.executable, str(DOCS / name), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_the_picture_of_the_packages_is_drawn_from_today() -> None:
    drawn = runpy.run_path(str(DOCS / "draw_rooms.py"))["draw"]()
    assert drawn == (DOCS / "rooms.svg").read_text(), "run `python docs/draw_rooms.py`"


def test_sizes_are_counted(tmp_path: Path) -> None:
    package = tmp_path / "raydet"
    package.mkdir()
    (package / "one.py").write_text(
        "def _once(x: dict[str, Any]):\n    return x\n\n\ndef f():\n    _once(1)\n"
    )
    (package / "two.py").write_text("def _twice():\n    pass\n\n\n_twice()\n_twice()\n")
    figures = [line.rsplit("  ", 1)[1] for line in run_script("sizes.py", str(tmp_path)).splitlines()]
    assert figures == ["12", "2", "3", "2", "2", "2", "1 (33%)", "1"]

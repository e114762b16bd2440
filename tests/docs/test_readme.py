"""The README is up to date: links, commands, recipes, spaces and make targets exist."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from raydet.cli import main
from raydet.cli.spaces import space_names
from raydet.recipes import RECIPES

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()


def command_lines() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", README, flags=re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def raydet_commands() -> list[list[str]]:
    found = []
    for line in command_lines():
        words = shlex.split(line)
        if "--" in words:  # `ray job submit -- COMMAND`, `raydet chaos -- COMMAND`
            first, words = words[: words.index("--")], words[words.index("--") + 1 :]
            words = ["raydet", *words] if words[0] == "tune" else words
            found += [first[1:]] if first[0] == "raydet" else []
        if words[:2] == ["python", "-m"] and words[2].startswith("raydet."):
            found.append([words[2].removeprefix("raydet."), *words[3:]])
        elif words[0] == "raydet":
            found.append(words[1:])
    return found


def test_links_exist() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", README)
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_there_are_commands() -> None:
    assert len(raydet_commands()) >= 8
    assert "make demo" in command_lines()


@pytest.mark.parametrize("words", raydet_commands(), ids=" ".join)
def test_commands_parse(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` after the arguments is only reached if they parse, so every option exists."""
    with pytest.raises(SystemExit) as caught:
        main([*words, "--help"])
    assert caught.value.code == 0
    help_text = capsys.readouterr().out
    for option in (word.split("=")[0] for word in words if word.startswith("--")):
        assert option in help_text


def test_recipes_and_spaces_exist() -> None:
    for name in re.findall(r"--recipe (\S+)", README):
        assert name in RECIPES
    for name in re.findall(r"--space (\S+)", README):
        assert name in space_names()


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"`?make (\w[\w-]*)`?", README):
        if target not in ("make",):
            assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), target

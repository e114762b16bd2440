"""Print how large raydet is, and how finely it is cut: `python docs/sizes.py [ROOT ...]`, a column per checkout."""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

Function = ast.FunctionDef | ast.AsyncFunctionDef


def references(tree: ast.AST) -> Counter[str]:
    """How often each name is read, as a variable, an attribute or an imported name."""
    counts: Counter[str] = Counter()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            counts[node.id] += 1
        elif isinstance(node, ast.Attribute):
            counts[node.attr] += 1
        elif isinstance(node, ast.ImportFrom):
            counts.update(alias.name for alias in node.names)
    return counts


def single_use_helpers(functions: dict[Path, list[Function]], used: dict[Path, Counter[str]]) -> int:
    """Number of private functions and methods that the package refers to exactly once.

    A file with a function of the same name refers to its own one.
    """
    count = 0
    for path, own in functions.items():
        for name in {node.name for node in own if node.name.startswith("_") and not node.name.endswith("__")}:
            defining = {
                other for other, nodes in functions.items() if any(node.name == name for node in nodes)
            }
            files = [path, *(other for other in used if other not in defining)]
            count += sum(used[file][name] for file in files) == 1
    return count


def untyped_dictionaries(tree: ast.AST) -> int:
    """Occurrences of `dict[str, Any]`, wherever a type stands."""
    subscripts = (node for node in ast.walk(tree) if isinstance(node, ast.Subscript))
    return sum(ast.unparse(node) == "dict[str, Any]" for node in subscripts)


def sizes(root: Path) -> dict[str, int | str]:
    """The figures of the package `raydet` of one checkout, by name."""
    texts = {path: path.read_text() for path in sorted((root / "raydet").rglob("*.py"))}
    if not texts:
        raise SystemExit(f"expected a checkout of raydet, got {root}: it has no raydet/*.py")
    trees = {path: ast.parse(text) for path, text in texts.items()}
    functions = {
        path: [node for node in ast.walk(tree) if isinstance(node, Function)] for path, tree in trees.items()
    }
    lengths = sorted(
        (node.end_lineno or 0) - node.lineno + 1 for nodes in functions.values() for node in nodes
    )
    helpers = single_use_helpers(functions, {path: references(tree) for path, tree in trees.items()})
    return {
        "lines": sum(text.count("\n") for text in texts.values()),
        "files": len(texts),
        "functions and methods": len(lengths),
        "their lines, median": lengths[len(lengths) // 2],
        "their lines, 90th percentile": lengths[len(lengths) * 9 // 10],
        "their lines, longest": lengths[-1],
        "private, referred to once": f"{helpers} ({helpers / len(lengths):.0%})",
        "dict[str, Any]": sum(map(untyped_dictionaries, trees.values())),
    }


def main() -> None:
    roots = [Path(argument) for argument in sys.argv[1:]] or [Path(__file__).parents[1]]
    columns = [sizes(root) for root in roots]
    for name in columns[0]:
        print(f"{name:30}", *(f"{column[name]!s:>12}" for column in columns))  # noqa: T201


if __name__ == "__main__":
    main()

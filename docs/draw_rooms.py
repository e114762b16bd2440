"""Draw docs/rooms.svg, the packages of raydet in layers, from their imports: `python docs/draw_rooms.py`.

A package stands one layer above the highest one that it imports. Arrows lead from a package to those that it imports;
an arrow that follows from others (cli -> engine, as cli -> tune -> engine) is left out.
"""

from __future__ import annotations

import ast
import io
import itertools
from collections.abc import Iterator
from pathlib import Path

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Patch
from matplotlib.path import Path as Curve

ROOT = Path(__file__).parents[1]
DIAGRAM = Path(__file__).with_name("rooms.svg")
Point = tuple[float, float]

GIANTS = {"ray": "#fbd9c0", "torch": "#cfe3f3"}
"""Colour of packages that import these as they are loaded, the first one that fits."""
OTHERS = "#eeeeee"
BOX_WH = (1.5, 0.5)
STEP_XY = (1.85, 1.0)


def package_of(module: str) -> str:
    """The package or single module below `raydet` that a module belongs to; `tune_spaces` is one of its own."""
    first, *rest = module.split(".")
    return rest[0] if first == "raydet" and rest else first


def imported_modules(path: Path, *, when_loaded: bool = False) -> Iterator[str]:
    """Modules that a file imports; a name imported from `raydet` itself as `raydet.<name>`.

    Args:
        when_loaded: only those at its top, not those inside functions.
    """
    tree = ast.parse(path.read_text())
    for node in tree.body if when_loaded else ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"raydet.{a.name}" if node.module == "raydet" else node.module for a in node.names)


def packages() -> dict[str, list[Path]]:
    """The files of every package; doors to the command line are left out."""
    files: dict[str, list[Path]] = {}
    for directory in ("raydet", "tune_spaces"):
        for path in sorted((ROOT / directory).rglob("*.py")):
            name = package_of(".".join(path.relative_to(ROOT).with_suffix("").parts))
            if name not in ("__init__", "__main__") and path.name != "__main__.py":
                files.setdefault(name, []).append(path)
    return files


def layers_of(imports: dict[str, set[str]]) -> dict[str, int]:
    """Height of every package, from 0 for those that import no other."""
    heights: dict[str, int] = {}
    while len(heights) < len(imports):
        ready = [name for name in imports if name not in heights and imports[name] <= heights.keys()]
        assert ready, f"packages import one another in a circle: {sorted(imports.keys() - heights.keys())}"
        heights |= {name: max((heights[other] + 1 for other in imports[name]), default=0) for name in ready}
    return heights


def arrows_of(imports: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Imports that do not follow from others, in alphabetical order."""
    reached: dict[str, set[str]] = {}
    for name in sorted(imports, key=layers_of(imports).__getitem__):
        reached[name] = imports[name].union(*(reached[other] for other in imports[name]))
    return sorted(
        (name, other)
        for name, others in imports.items()
        for other in others
        if not any(other in reached[between] for between in others)
    )


def positions_of(heights: dict[str, int], arrows: list[tuple[str, str]]) -> dict[str, Point]:
    """The centre of every box: from the ground up, each layer in the order of what it stands on."""
    positions: dict[str, Point] = {}
    for height in range(max(heights.values()) + 1):

        def below(name: str) -> float:
            found = [positions[other][0] for mine, other in arrows if mine == name]
            return sum(found) / len(found) if found else 0.0

        row = sorted(
            (name for name in heights if heights[name] == height), key=lambda name: (below(name), name)
        )
        # Every other layer to one side, so that long arrows pass between boxes.
        shift = 0.25 * (-1) ** height
        for place, name in enumerate(row):
            x = (place - (len(row) - 1) / 2 + shift) * STEP_XY[0]
            positions[name] = (x, height * STEP_XY[1])
    return positions


def curve_between(start: Point, end: Point, others: list[Point]) -> Curve:
    """The least bent of some curves from one point to another that meets none of the boxes, if there is one."""
    parts = np.linspace(0, 1, 60)[:, None]
    room = np.array(BOX_WH) / 2 + 0.03
    curves = []
    for bend, lift in itertools.product(np.linspace(-3, 3, 31).round(1), (0.0, 0.4, -0.4, 0.8, -0.8)):
        middle = ((start[0] + end[0]) / 2 + bend, (start[1] + end[1]) / 2 + lift)
        points = np.array(start) * (1 - parts) ** 2 + 2 * np.array(middle) * parts * (1 - parts)
        distances = np.abs((points + np.array(end) * parts**2)[:, None] - np.array(others))
        num_hits = int((distances < room).all(axis=2).any(axis=0).sum())
        curve = Curve([start, middle, end], [Curve.MOVETO, Curve.CURVE3, Curve.CURVE3])
        curves.append((num_hits, abs(bend) + abs(lift), curve))
    return min(curves, key=lambda curve: curve[:2])[2]


def draw() -> str:
    """The diagram as SVG, the same text for the same imports and sizes."""
    files = packages()
    modules = {name: {m for path in paths for m in imported_modules(path)} for name, paths in files.items()}
    imports = {
        name: {package_of(module) for module in found} & files.keys() - {name}
        for name, found in modules.items()
    }
    heights, arrows = layers_of(imports), arrows_of(imports)
    positions = positions_of(heights, arrows)
    with mpl.rc_context({"svg.hashsalt": "raydet", "svg.fonttype": "none", "font.family": "sans-serif"}):
        canvas = Figure(figsize=(9.5, 11))
        plot = canvas.add_axes((0, 0, 1, 1))
        width, height = BOX_WH
        for name, other in arrows:
            (x, y), (to_x, to_y) = positions[name], positions[other]
            boxes = [position for box, position in positions.items() if box not in (name, other)]
            curve = curve_between((x, y - height / 2), (to_x, to_y + height / 2 + 0.03), boxes)
            style = {"arrowstyle": "-|>", "mutation_scale": 8, "color": "#9a9a9a", "linewidth": 0.9}
            plot.add_patch(FancyArrowPatch(path=curve, zorder=1, **style))
        for name, (x, y) in positions.items():
            lines = sum(path.read_text().count("\n") for path in files[name])
            loaded = (m for path in files[name] for m in imported_modules(path, when_loaded=True))
            tops = {module.split(".")[0] for module in loaded}
            colour = next((colour for giant, colour in GIANTS.items() if giant in tops), OTHERS)
            corner = (x - width / 2, y - height / 2)
            shape = "round,pad=0,rounding_size=0.07"
            plot.add_patch(
                FancyBboxPatch(
                    corner, *BOX_WH, boxstyle=shape, facecolor=colour, edgecolor="#555555", zorder=2
                )
            )
            plot.text(x, y + 0.08, name, ha="center", va="center", fontsize=10, weight="bold", zorder=3)
            # Rounded, so that the diagram need not be drawn again after every change.
            size = f"{max(1, round(lines / 100)) / 10:.1f}k lines"
            plot.text(x, y - 0.13, size, ha="center", va="center", fontsize=8, color="#333333", zorder=3)
        legend = [Patch(facecolor=colour, label=f"imports {giant}") for giant, colour in GIANTS.items()]
        legend.append(Patch(facecolor=OTHERS, label="imports neither"))
        plot.legend(handles=legend, loc="lower right", frameon=False, fontsize=9)
        xs, ys = zip(*positions.values(), strict=True)
        plot.set_xlim(min(xs) - 1, max(xs) + 1)
        plot.set_ylim(min(ys) - 0.5, max(ys) + 0.5)
        plot.axis("off")
        text = io.StringIO()
        canvas.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines()) + "\n"


if __name__ == "__main__":
    DIAGRAM.write_text(draw())

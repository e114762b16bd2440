"""`check.html`: one self-contained page without scripts, in which everything is escaped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

from jinja2 import Environment, PackageLoader, StrictUndefined

from raydet.check.alignment import PRESENT, STRONG
from raydet.check.examine import SIZE_NAMES, Settings
from raydet.check.findings import KINDS, SEVERITIES, Finding
from raydet.check.gather import Gathered, cause_of
from raydet.check.images import Case
from raydet.check.summary import worst_first

NUM_LISTED = 20
"""Largest number of findings of a kind on the page; check.json has all."""


@dataclass(frozen=True, slots=True)
class Group:
    """All findings of a kind."""

    kind: str
    severity: str
    title: str
    remedy: str
    count: int
    items: Sequence[Finding]
    causes: Sequence[tuple[str, int]] = ()
    cases: list[Case] = field(default_factory=list)


def render(found: Gathered, settings: Settings, cases: Sequence[Case], *, title: str) -> str:
    """The page's HTML."""
    environment = Environment(
        loader=PackageLoader("raydet.check"), autoescape=True, undefined=StrictUndefined
    )
    rows = found.class_rows()
    most = max((row["all"] for row in rows), default=0) or 1
    most_share = max((row["share"] for row in found.mask_rows()), default=0) or 1
    small, large = settings.size_edges
    unit = " of the image's side" if settings.edges_are_fractions else " px"
    page = environment.get_template("check.html.j2").render(
        title=title,
        found=found,
        facts=_facts(found),
        groups=_groups(found, cases),
        severities=SEVERITIES,
        classes=[{**row, "share": round(100 * row["all"] / most, 1)} for row in rows],
        masks=[{**row, "bar": round(100 * row["share"] / most_share, 1)} for row in found.mask_rows()],
        sizes=[
            (name, sum(found.boxes[label, name] for label in range(len(found.classes))))
            for name in SIZE_NAMES
        ],
        size_text=f"small: areas up to that of a square of {small:g}{unit}; large: from {large:g}{unit} on",
        per_image=_bars(sorted(found.boxes_per_image.items())),
        image_sizes=found.sizes_hw.most_common(10),
        channels=[(name, row) for name, sums in found.channels.items() for row in sums.rows()],
        alignment=found.alignment_rows(),
        tolerance=f"{settings.tolerance:.2%}",
        strengths=(PRESENT, STRONG),
        num_listed=NUM_LISTED,
    )
    # Python represents bytes of file names that are not UTF-8 by lone surrogates, which cannot be encoded.
    return page.encode(errors="backslashreplace").decode()


def _facts(found: Gathered) -> list[tuple[str, str]]:
    sides = {"train": 0, "val": 0} | found.images_by_side
    facts = [
        ("images", f"{found.num_images:,}"),
        (" / ".join(sides), " / ".join(f"{count:,}" for count in sides.values())),
        ("modalities", ", ".join(found.modalities)),
        ("boxes", f"{found.boxes.total():,}")
        if found.masks is None
        else ("labelled pixels", f"{found.masks.labelled:,}"),
        ("left out", f"{len(found.left_out):,}"),
        ("objects left out by rule", f"{sum(found.ignored.values()):,}"),
    ]
    return facts + [(f"{severity}s", f"{found.count(severity):,}") for severity in SEVERITIES]


def _groups(found: Gathered, cases: Sequence[Case]) -> list[Group]:
    groups = []
    for kind, items in found.by_kind().items():
        causes = (
            Counter(cause_of(item.detail) for item in items)
            if kind.startswith("left_out")
            else Counter[str]()
        )
        groups.append(
            Group(
                kind=kind,
                **asdict(KINDS[kind]),
                count=len(items),
                items=worst_first(items)[:NUM_LISTED],
                causes=causes.most_common(),
                cases=[case for case in cases if case.finding.kind == kind],
            )
        )
    return groups


def _bars(counts: Sequence[tuple[int, int]]) -> list[tuple[str, int, float]]:
    """Rows (label, count, length in percent of the longest); 20 boxes and more share a row."""
    merged: Counter[str] = Counter()
    for number, count in counts:
        merged[str(number) if number < 20 else "20 or more"] += count
    most = max(merged.values(), default=1)
    return [(label, count, round(100 * count / most, 1)) for label, count in merged.items()]

"""The summary of a check in a terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from raydet.check.findings import KINDS, SEVERITIES, Finding
from raydet.check.gather import Gathered, cause_of

NUM_NAMED = 3
NUM_CLASSES = 12


def summary_lines(found: Gathered) -> Iterator[str]:
    """Counts, classes, alignment, and findings by severity with the first few names and the remedy."""
    sides = ", ".join(
        f"{count} {side}" for side, count in ({"train": 0, "val": 0} | found.images_by_side).items()
    )
    yield (
        f"{found.num_images} images ({sides}), {', '.join(found.modalities)}; "
        f"{len(found.left_out)} left out, {found.num_unread} not decoded"
    )
    if found.masks is not None:
        yield from _mask_lines(found)
    else:
        yield _box_line(found)
    for row in found.alignment_rows():
        yield (
            f"{row['pair']}: {row['aligned']} aligned, {row['misaligned']} misaligned, "
            f"{row['cannot_tell']} undetermined"
        )
    for kind, items in found.by_kind().items():
        worst = [
            f"{printable(each.name)} ({printable(each.detail)})" for each in worst_first(items)[:NUM_NAMED]
        ]
        named = "; ".join(worst) + ("; ..." if len(items) > NUM_NAMED else "")
        yield f"{KINDS[kind].severity}: {len(items)} x {KINDS[kind].title}: {named}"
        if kind in ("left_out", "left_out_annotation"):
            causes = Counter(cause_of(item.detail) for item in items)
            yield from (f"    {count} x {printable(cause)}" for cause, count in causes.most_common())
        yield f"    {KINDS[kind].remedy}"
    yield ", ".join(f"{found.count(severity)} {severity}s" for severity in SEVERITIES)


def _box_line(found: Gathered) -> str:
    rows = sorted(found.class_rows(), key=lambda row: -row["all"])
    counts = ", ".join(f"{printable(row['class'])} {row['all']}" for row in rows[:NUM_CLASSES])
    more = f" and {len(rows) - NUM_CLASSES} more" if len(rows) > NUM_CLASSES else ""
    rules = ", ".join(f"{printable(rule)} {count}" for rule, count in found.ignored.items())
    ignored = f"; {sum(found.ignored.values())} left out by rule: {rules}" if rules else ""
    return f"{sum(row['all'] for row in rows)} boxes: {counts}{more}{ignored}"


def _mask_lines(found: Gathered) -> Iterator[str]:
    assert found.masks is not None, "the set has masks"
    rows = sorted(found.mask_rows(), key=lambda row: -row["pixels"])
    shares = ", ".join(f"{printable(row['class'])} {row['share']:.2%}" for row in rows[:NUM_CLASSES])
    more = f" and {len(rows) - NUM_CLASSES} more" if len(rows) > NUM_CLASSES else ""
    yield f"{found.masks.masks} masks, {len(rows)} classes: {shares}{more} of the labelled pixels"
    total = found.masks.labelled + found.masks.unlabelled + found.masks.anomalous
    isolated = found.masks.isolated / max(1, found.masks.labelled)
    anomalous = f", {found.masks.anomalous / total:.2%} anomalies" if found.masks.anomalous else ""
    yield (
        f"{found.masks.unlabelled / max(1, total):.2%} of the pixels without a label{anomalous}, "
        f"{found.masks.border / max(1, found.masks.labelled):.2%} at borders, {isolated:.3%} isolated"
    )


def worst_first(items: list[Finding]) -> list[Finding]:
    """Findings of one kind by badness; equal ones in the order of the images."""
    return sorted(items, key=lambda finding: -finding.badness)


def printable(text: str) -> str:
    """The text on one line, without control characters and changes of writing direction.

    >>> printable("a\\x1b[31mb")
    'a?[31mb'
    """
    return "".join(char if char.isprintable() else "?" for char in text)

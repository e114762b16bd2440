"""Names cannot break the page, nothing on it runs or is fetched, and it stays small."""

from __future__ import annotations

import json
from dataclasses import replace
from html.parser import HTMLParser

from raydet.check.examine import Settings
from raydet.check.image_record import as_json
from raydet.check.images import PER_KIND, worst_cases
from raydet.check.page import render
from raydet.check.summary import summary_lines
from raydet.data.sources.bad_samples import LeftOut
from tests.unit.check.planted import FAULTS, MemorySet, checked, clean_samples

HOSTILE = '</td><script>alert(1)</script><img src="http://x/y" onerror=alert(1)>\x1b[31m\u202e\udce9'
CLASSES = (f"person {HOSTILE}", "car")


class Tags(HTMLParser):
    """Names of all elements, and what they point to."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.add(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href")]


def hostile_set() -> MemorySet:
    samples = [replace(s, image_id=f"{s.image_id} {HOSTILE}") for s in clean_samples(1, count=12)]
    source = MemorySet(samples, classes=CLASSES)
    for number, kind in enumerate(("box_outside", "box_not_finite", "misaligned", "saturated", "leak")):
        FAULTS[kind][0](source, number)
    source.left_out.append(LeftOut(HOSTILE, f"/data/{HOSTILE}, row 1: a box is empty, got {HOSTILE}"))
    return source


def test_hostile_names_on_the_page() -> None:
    source = hostile_set()
    found = checked(source)
    page = render(found, Settings(classes=CLASSES), list(worst_cases(found, source)), title=f"of {HOSTILE}")
    tags = Tags()
    tags.feed(page)
    assert not tags.names & {"script", "iframe", "object", "link rel=stylesheet", "form"}
    assert all(address.startswith(("data:", "#")) for address in tags.addresses)
    assert sum(address.startswith("data:image/jpeg") for address in tags.addresses) >= 4
    assert "default-src 'none'" in page
    assert "alert(1)" in page  # it is shown, not hidden
    assert len(page.encode()) < 1_000_000  # half a character could not be written


def test_hostile_names_in_the_terminal() -> None:
    lines = list(summary_lines(checked(hostile_set())))
    assert all(line.isprintable() for line in lines)
    assert any(line.startswith("error: 1 x modalities that are not aligned: image 2") for line in lines)


def test_no_kind_has_more_than_a_few_images() -> None:
    source = MemorySet(clean_samples(2, count=12))
    for number in range(8):
        FAULTS["box_outside"][0](source, number)
    assert len(list(worst_cases(checked(source), source))) == PER_KIND


def test_an_image_that_has_gone_since_is_passed_over() -> None:
    source = MemorySet(clean_samples(2))
    FAULTS["box_outside"][0](source, 0)
    found = checked(source)
    source.broken.add(0)
    assert list(worst_cases(found, source)) == []


def test_an_empty_page_says_so() -> None:
    source = MemorySet(clean_samples(4))
    page = render(checked(source), Settings(classes=source.classes), [], title="clean")
    assert "No findings." in page


def test_the_record_has_everything() -> None:
    source = hostile_set()
    found = checked(source)
    tree = json.loads(
        json.dumps(as_json(found, Settings(classes=CLASSES), {"kind": "memory"}), allow_nan=False)
    )
    assert (
        sum(group["count"] for group in tree["findings"])
        == len(found.findings)
        == sum(tree["counts"].values())
    )
    assert all(group["count"] == len(group["items"]) for group in tree["findings"])
    assert tree["causes"] == {"a box is empty": 1}
    assert len(tree["alignment"]["images"]) == 12
    assert tree["images"] == {"seen": 12, "unread": 0, "left_out": 1, "train": 2, "val": 10}

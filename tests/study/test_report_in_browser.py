"""The report in a real browser, wide and narrow: no console messages, no requests, nothing clipped."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raydet.cli.spaces import load_space
from raydet.config import apply_overrides
from raydet.recipes import recipe
from raydet.report.write import write_report
from raydet.tune.study import Study
from tests.study.simulated import simulate
from tests.study.test_report import STUDY, quality

pytestmark = pytest.mark.exhaustive

BEYOND = """[...document.querySelectorAll('body *')]
    .filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(e => e.tagName)"""
BROKEN = "[...document.images].filter(image => !image.naturalWidth).length"


CLASSES = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(2)>',
    "=cmd()|' calc'!A1",
    "شخص يمشي",
    "歩行者と自転車",
    "a very long name of a class " * 6,
    r"$\alpha_{x}$ & 5% #1 ~^",
]
ARMS = {
    "cmx": "cmx",
    "gaff": '"><img src=x onerror=alert(3)>',
    "gaff_shared": "=歩行者_" + "long_" * 14 + "شخص",
}


def hostile_study() -> Study:
    """Classes and arms with names that look like code, are very long, or use other scripts."""
    base = apply_overrides(recipe("demo"), {"data.classes": CLASSES})
    study = load_space("fusion_methods", base, {}, arms=list(ARMS))
    (factor,) = study.factors
    assert factor.arms is not None
    renamed = factor.model_copy(
        update={
            "values": tuple(ARMS.values()),
            "arms": {name: factor.arms[arm] for arm, name in ARMS.items()},
            "equivalent_values": (),
        }
    )
    return study.model_copy(update={"factors": (renamed,), "hypotheses": ()})


STUDIES = {"plain": STUDY, "hostile": hostile_study()}


@pytest.mark.parametrize("name", STUDIES)
@pytest.mark.parametrize("width", [1280, 400])
def test_the_page(width: int, name: str, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    page_path = write_report(simulate(STUDIES[name], tmp_path, quality), resamples=100).page
    messages: list[str] = []
    requests: list[str] = []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: messages.append(message.text))
        page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(page_path.as_uri())
        page.evaluate("document.querySelectorAll('img').forEach(image => image.loading = 'eager')")
        page.wait_for_function(f"{BROKEN} === 0", timeout=10_000)
        assert page.evaluate(BEYOND) == []
        assert page.evaluate("document.documentElement.scrollWidth") == width
        browser.close()
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [page_path.as_uri()]

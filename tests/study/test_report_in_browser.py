"""The report in a real browser: no console message, no request, nothing cut off, wide and narrow."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from raydet.report.write import write_report
from tests.study.simulated import simulate
from tests.study.test_report import STUDY, quality

pytestmark = pytest.mark.exhaustive

BEYOND = """[...document.querySelectorAll('body *')]
    .filter(e => !e.closest('.scroll') && e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
    .map(e => e.tagName)"""
BROKEN = "[...document.images].filter(image => !image.naturalWidth).length"


@pytest.mark.parametrize("width", [1280, 400])
def test_the_page(width: int, tmp_path: Path) -> None:
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    page_path = write_report(simulate(STUDY, tmp_path, quality), resamples=100).page
    messages: list[str] = []
    requests: list[str] = []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": width, "height": 900})
        page.on("console", lambda message: messages.append(message.text))
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

"""A study in the MLflow UI, in a real browser: its runs, a comparison of eight trials, charts, and the report.

The tests check visible text of MLflow's pages, not their structure.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from raydet.cli.report import log_report
from raydet.report.write import write_report
from raydet.track.runs import SQLITE
from tests.study.simulated import simulate, track
from tests.study.test_report import HOSTILE, STUDY, quality

pytestmark = pytest.mark.exhaustive

PATIENCE_MS = 120_000
MLFLOW_ERRORS = ("the server responded with a status of 404", "ResizeObserver loop")
"""Console errors of MLflow's own pages."""
QUIET = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


@dataclass(frozen=True, slots=True)
class Served:
    """A study in an MLflow server."""

    url: str
    experiment: str
    parent: Run
    trials: list[Run]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    storage = tmp_path_factory.mktemp("runs")
    directory = simulate(STUDY, storage, quality, epochs=3, has_checkpoints=True)
    track(STUDY, directory)
    log_report(write_report(directory, resamples=100), directory, None)
    store = f"sqlite:///{storage / SQLITE}"
    client = MlflowClient(store)
    experiment = client.get_experiment_by_name(STUDY.name)
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if run.info.run_name == "methods")
    trials = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", store]
    with (storage / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port), "--workers", "1"],
            env=os.environ
            | {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        _wait_for(f"{url}/health", server)
        yield Served(url, experiment.experiment_id, parent, trials)
    finally:
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(timeout=60)


def _wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end and server.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    pytest.fail(f"the MLflow server does not respond; exit code {server.poll()}")


@pytest.fixture
def page(served: Served, tmp_path: Path) -> Iterator[Any]:
    """A page in an empty browser profile; afterwards, checks for console errors and foreign requests."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    messages: list[str] = []
    elsewhere: list[str] = []
    with playwright.sync_playwright() as play:
        context = play.chromium.launch_persistent_context(
            tmp_path / "profile",
            executable_path=chromium,
            args=QUIET,
            viewport={"width": 1800, "height": 1200},
        )
        context.set_default_timeout(PATIENCE_MS)
        page = context.pages[0]
        page.on("console", lambda message: message.type == "error" and messages.append(message.text))
        page.on("pageerror", lambda error: messages.append(str(error)))
        page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: elsewhere.append(request.url))
        yield page
        if folder := os.environ.get("RAYDET_SCREENSHOTS"):
            page.screenshot(path=Path(folder) / f"{tmp_path.name}.png")
        context.close()
    assert [text for text in messages if not any(known in text for known in MLFLOW_ERRORS)] == []
    here = (f"{served.url}/", "data:", "blob:", "about:")
    assert [url for url in elsewhere if not url.startswith(here)] == []


def _text(page: Any, text: str) -> Any:
    """The first element with this text."""
    return page.get_by_text(text, exact=True).first


def test_the_study_is_listed_with_trials_below_their_phase(page: Any, served: Served) -> None:
    page.goto(f"{served.url}/#/experiments")
    _text(page, STUDY.name).wait_for()
    page.goto(f"{served.url}/#/experiments/{served.experiment}/runs?workflowType=machine_learning")
    page.get_by_text("The best control is").first.wait_for()  # the conclusions are above the runs
    row = page.locator("[role=row]", has=page.get_by_role("link", name="methods", exact=True)).first
    row.locator("[role=gridcell] button").first.click()
    for trial in served.trials:
        page.get_by_role("link", name=trial.info.run_name, exact=True).wait_for()
    assert page.get_by_role("link", name="controls", exact=True).count() == 1


def test_data_sets_and_sources_are_columns(page: Any, served: Served) -> None:
    page.goto(f"{served.url}/#/experiments/{served.experiment}/runs?workflowType=machine_learning")
    row = page.locator("[role=row]", has=page.get_by_role("link", name="methods", exact=True)).first
    row.locator("[role=gridcell] button").first.click()
    page.get_by_role("link", name=served.trials[0].info.run_name, exact=True).wait_for()
    page.get_by_text("synthetic (training)").first.wait_for()
    _text(page, "raydet tune").wait_for()


def test_checkpoints_are_models_with_metrics(page: Any, served: Served) -> None:
    page.set_viewport_size({"width": 3600, "height": 1200})  # columns outside of it are not drawn
    page.goto(f"{served.url}/#/experiments/{served.experiment}/models?workflowType=machine_learning")
    trial = served.trials[0]
    page.get_by_text(f"{trial.info.run_name} epoch_0003").first.wait_for()
    page.get_by_text("synthetic (validation)").first.wait_for()  # above its metrics
    _text(page, "mAP").wait_for()
    page.get_by_text(f"{trial.data.metrics['mAP']:.3f}"[:4]).first.wait_for()


def test_eight_trials_compare(page: Any, served: Served) -> None:
    eight = served.trials[:8]
    ids = quote(json.dumps([run.info.run_id for run in eight]))
    experiments = quote(json.dumps([served.experiment]))
    page.goto(f"{served.url}/#/compare-runs?runs={ids}&experiments={experiments}")
    _text(page, "Comparing 8 Runs from 1 Experiment").wait_for()
    # Shown by default: the arms, and the score.
    drawn = page.locator("svg.main-svg")
    drawn.get_by_text("arm", exact=True).first.wait_for()
    drawn.get_by_text("mAP", exact=True).first.wait_for()
    for run in eight:
        _text(page, run.info.run_name).wait_for()
    _text(page, "(1, 2, 3, 4)").wait_for()  # stages, on one line
    assert f"{eight[0].data.metrics['mAP']:.3f}" in page.inner_text("body")


def test_charts_show_losses_and_ap_first(page: Any, served: Served) -> None:
    trial = served.trials[0].info.run_id
    page.goto(f"{served.url}/#/experiments/{served.experiment}/runs/{trial}/model-metrics")
    for name in ("loss", "mAP", "mAP_50"):
        _text(page, name).wait_for()
    page.locator("svg.main-svg .scatterlayer .trace").first.wait_for(state="attached")
    text = page.inner_text("body")
    positions = [text.index(f"\n{name}\n") for name in ("loss", "mAP", "mAP_50")]
    assert positions == sorted(positions)
    assert not re.search(r"\b(AR_1|epoch)\b", text[: positions[-1]])


def test_the_report_is_displayed(page: Any, served: Served) -> None:
    run = served.parent.info.run_id
    page.goto(f"{served.url}/#/experiments/{served.experiment}/runs/{run}/artifacts/report/report.html")
    frame = page.frame_locator("iframe")
    frame.get_by_role("heading", name=f"Study {STUDY.name}").wait_for()
    assert HOSTILE in frame.locator("dl").inner_text()
    images = frame.locator("img")
    images.evaluate_all("all => all.forEach(image => image.loading = 'eager')")
    broken = "all => all.filter(image => !image.complete || !image.naturalWidth).length"
    end = time.monotonic() + 30
    while images.evaluate_all(broken) and time.monotonic() < end:
        time.sleep(0.2)
    assert images.count() > 5
    assert images.evaluate_all(broken) == 0
    assert frame.locator("body").evaluate("body => getComputedStyle(body).maxWidth") == "1180px"


def test_tables_and_figures_have_a_preview(page: Any, served: Served) -> None:
    artifacts = f"{served.url}/#/experiments/{served.experiment}/runs/{served.parent.info.run_id}/artifacts"
    page.goto(f"{artifacts}/report/tables/cells_methods.csv")
    page.get_by_text("gaff_shared").first.wait_for()
    _text(page, "figures").click()
    _text(page, "scores_methods.png").click()
    _text(page, "report/figures/scores_methods.png").wait_for()
    page.wait_for_function("[...document.images].some(image => image.naturalWidth > 500)")

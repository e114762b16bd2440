"""Whether the MLflow server is there, lets us in, keeps others out, and has no known holes."""

from __future__ import annotations

from urllib.parse import urlsplit

from raydet.doctor.finding import Finding, Level
from raydet.doctor.judge import FLOORS, release
from raydet.errors import TrackingError
from raydet.track.server import Server, ask_server, check_reachable, is_loopback, shown


def check_tracking(uri: str | None) -> list[Finding]:
    """What `--tracking-uri` names.

    Args:
        uri: None: sqlite in the storage directory; `none`: nothing is tracked.
    """
    if uri == "none":
        return [Finding("mlflow", "ok", "nothing is tracked")]
    if uri is None:
        return [
            Finding("mlflow", "ok", "no server is named (--tracking-uri): sqlite in the storage directory")
        ]
    try:
        if urlsplit(uri).scheme in ("http", "https"):
            return judge_server(uri, ask_server(uri))
        check_reachable(uri)
    except TrackingError as error:
        return [Finding("mlflow", "failure", str(error))]
    if urlsplit(uri).hostname is None:
        return [Finding("mlflow", "ok", f"{shown(uri)}: a file of this machine")]
    remedy = "whoever tracks knows the database's password; a server in between keeps it"
    return [Finding("mlflow", "warning", f"{shown(uri)}: a database answers", remedy)]


def judge_server(uri: str, server: Server) -> list[Finding]:
    """From what it has said."""
    where, at_home = shown(uri), is_loopback(uri)
    findings = []
    if server.refusal is not None:
        findings.append(Finding("mlflow", "failure", *_refusal(where, server)))
    if server.version is None and server.refusal is None:
        remedy = f"see that it is {FLOORS['mlflow']} or newer"
        findings.append(Finding("mlflow", "warning", f"{where}: it does not tell its version", remedy))
    if server.version is not None and release(server.version) < release(FLOORS["mlflow"]):
        text = f"{where}: MLflow {server.version} has known holes (CVE-2026-4137)"
        level: Level = "warning" if at_home else "failure"
        findings.append(Finding("mlflow", level, text, f"install {FLOORS['mlflow']} or newer on the server"))
    if server.is_open and not at_home:
        text = f"{where}: whoever reaches it may read, change and delete every run"
        remedy = "start it with --app-name basic-auth, or let it listen on 127.0.0.1 only"
        findings.append(Finding("mlflow", "warning", text, remedy))
    if urlsplit(uri).scheme == "http" and not at_home and not server.is_open:
        text = f"{where}: passwords and results cross the network unencrypted"
        remedy = "put TLS before it, or reach it through a tunnel"
        findings.append(Finding("mlflow", "warning", text, remedy))
    if not findings:
        findings.append(Finding("mlflow", "ok", f"{where}: MLflow {server.version}"))
    return findings


def _refusal(where: str, server: Server) -> tuple[str, str]:
    """Text and remedy."""
    if server.refusal == 401:
        return (
            f"{where}: it refuses user and password",
            "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
        )
    if server.refusal == 403 and "Host header" in server.said:
        return f"{where}: it does not know itself by that name", "start it with --allowed-hosts HOST:PORT"
    if server.refusal == 403:
        return f"{where}: this user may not see experiments", "give the user its rights"
    return (
        f"{where}: HTTP {server.refusal}: {server.said}",
        "correct the URI; is it an MLflow server that answers there?",
    )

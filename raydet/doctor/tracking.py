"""Whether the MLflow server answers, accepts our credentials, rejects others, and has no known vulnerabilities."""

from __future__ import annotations

from urllib.parse import urlsplit

from raydet.doctor.finding import Finding, Level
from raydet.doctor.judge import FLOORS, release
from raydet.errors import TrackingError
from raydet.track.server import Server, ask_server, check_reachable, is_loopback, redacted_uri


def check_tracking(uri: str | None) -> list[Finding]:
    """Check the target of `--tracking-uri`.

    Args:
        uri: None: sqlite in the storage directory; `none`: nothing is tracked.
    """
    if uri == "none":
        return [Finding("mlflow", "ok", "nothing is tracked")]
    if uri is None:
        return [Finding("mlflow", "ok", "no server is set (--tracking-uri): sqlite in the storage directory")]
    try:
        if urlsplit(uri).scheme in ("http", "https"):
            return judge_server(uri, ask_server(uri))
        check_reachable(uri)
    except TrackingError as error:
        return [Finding("mlflow", "failure", str(error))]
    if urlsplit(uri).hostname is None:
        return [Finding("mlflow", "ok", f"{redacted_uri(uri)}: a file of this machine")]
    remedy = "every client knows the database's password; a server in between hides it"
    return [Finding("mlflow", "warning", f"{redacted_uri(uri)}: a database answers", remedy)]


def judge_server(uri: str, server: Server) -> list[Finding]:
    """The findings on a server that has answered."""
    where, is_local = redacted_uri(uri), is_loopback(uri)
    findings = []
    if server.refusal is not None:
        findings.append(Finding("mlflow", "failure", *_refusal(where, server)))
    if server.version is None and server.refusal is None:
        remedy = f"see that it is {FLOORS['mlflow']} or newer"
        findings.append(Finding("mlflow", "warning", f"{where}: it does not report its version", remedy))
    if server.version is not None and release(server.version) < release(FLOORS["mlflow"]):
        text = f"{where}: MLflow {server.version} has a known vulnerability (CVE-2026-4137)"
        level: Level = "warning" if is_local else "failure"
        findings.append(Finding("mlflow", level, text, f"install {FLOORS['mlflow']} or newer on the server"))
    if server.is_open and not is_local:
        text = f"{where}: anyone who reaches it may read, change and delete every run"
        remedy = "start it with --app-name basic-auth, or make it listen on 127.0.0.1 only"
        findings.append(Finding("mlflow", "warning", text, remedy))
    if urlsplit(uri).scheme == "http" and not is_local and not server.is_open:
        text = f"{where}: passwords and results cross the network unencrypted"
        remedy = "put TLS in front of it, or reach it through a tunnel"
        findings.append(Finding("mlflow", "warning", text, remedy))
    if not findings:
        findings.append(Finding("mlflow", "ok", f"{where}: MLflow {server.version}"))
    return findings


def _refusal(where: str, server: Server) -> tuple[str, str]:
    """Text and remedy."""
    if server.refusal == 401:
        remedy = "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
        return f"{where}: it rejects user and password", remedy
    if server.refusal == 403 and "Host header" in server.said:
        return f"{where}: it does not accept that host name", "start it with --allowed-hosts HOST:PORT"
    if server.refusal == 403:
        return f"{where}: this user may not read experiments", "give the user that permission"
    return f"{where}: HTTP {server.refusal}: {server.said}", "correct the URI; is there an MLflow server?"

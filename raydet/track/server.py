"""A tracking server, asked directly: whether it is there, how old it is, whom it lets in. Needs no mlflow."""

from __future__ import annotations

import base64
import configparser
import http.client
import os
import re
import socket
import ssl
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit, urlunsplit

from raydet.errors import TrackingError

ANSWER_S = 8.0
"""For a server to answer one question."""
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
SILENCE = (OSError, ValueError, http.client.HTTPException)
"""What comes where no server answers, or none that speaks HTTP."""
GATEWAY_FAILURES = {502, 503, 504}
"""What a proxy says for a server that does not answer it."""
LOOPBACK = {"localhost", "127.0.0.1", "::1"}

_VERSION = "/version"
_LIST = "/api/2.0/mlflow/experiments/search?max_results=1"


@dataclass(frozen=True, slots=True)
class Server:
    """What an MLflow server has said."""

    version: str | None
    """None: it does not tell."""
    is_open: bool
    """It shows its experiments to whoever asks."""
    refusal: int | None
    """The HTTP status with which it refuses us; None: it lets us in."""
    said: str
    """With it, in its own words."""


def check_reachable(uri: str) -> None:
    """Find out within seconds that nobody answers: MLflow would try for minutes.

    Args:
        uri: of a server or a database; any other is let pass.

    Raises:
        TrackingError: nobody answers there.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("http", "https"):
        try:
            status, _ = _get(uri, "/health", authorization=None)
            if status in GATEWAY_FAILURES:
                raise OSError(f"a gateway says {status}")
        except SILENCE as error:
            if not isinstance(
                getattr(error, "reason", error), ssl.SSLError
            ):  # mlflow may trust others than we do
                raise _silence(uri, error) from None
        return
    port = DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if port is None or not parts.hostname:
        return
    try:
        socket.create_connection((parts.hostname, parts.port or port), timeout=ANSWER_S).close()
    except OSError as error:
        raise _silence(uri, error) from None


def ask_server(uri: str) -> Server:
    """What an MLflow server says, with our credentials and without.

    Args:
        uri: http://... or https://...

    Raises:
        TrackingError: nobody answers there.
    """
    ours = _authorization(uri)
    try:
        status, said = _get(uri, _LIST, authorization=ours)
        stranger, _ = _get(uri, _LIST, authorization=None)
        known, version = _get(uri, _VERSION, authorization=ours)
    except SILENCE as error:
        raise _silence(uri, error) from None
    return Server(
        version=version.strip() if known == 200 and re.match(r"\d+\.\d+", version) else None,
        is_open=stranger == 200,
        refusal=None if status == 200 else status,
        said=_one_line(said),
    )


def is_loopback(uri: str) -> bool:
    """Whether only this machine can reach it."""
    return urlsplit(uri).hostname in LOOPBACK


def shown(uri: str) -> str:
    """Without its password, for messages."""
    return re.sub(r"//[^/@\s]*@", "//***@", uri)


def _get(uri: str, path: str, *, authorization: str | None) -> tuple[int, str]:
    """HTTP status and text.

    Raises:
        SILENCE: there is no answer.
    """
    parts = urlsplit(uri)
    place = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", "")) + path
    request = urllib.request.Request(place, headers={"Authorization": authorization} if authorization else {})
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S, context=_tls()) as answer:
            return int(answer.status), answer.read(10_000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read(10_000).decode(errors="replace")


def _silence(uri: str, error: Exception) -> TrackingError:
    reason = getattr(error, "reason", error)
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return TrackingError(
        f"cannot use the tracking URI {shown(uri)}: nothing answers ({text}); start the server, correct the URI, or "
        "leave --tracking-uri out for a local sqlite file"
    )


def _authorization(uri: str) -> str | None:
    """As mlflow finds it: in the URI, the environment, or ~/.mlflow/credentials."""
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if token:
        return f"Bearer {token}"
    parts = urlsplit(uri)
    file = configparser.ConfigParser(interpolation=None)
    file.read(Path.home() / ".mlflow" / "credentials")
    kept = file["mlflow"] if file.has_section("mlflow") else {}
    name = os.environ.get("MLFLOW_TRACKING_USERNAME") or kept.get("mlflow_tracking_username")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or kept.get("mlflow_tracking_password")
    if parts.username:
        name, password = unquote(parts.username), unquote(parts.password or "")
    if not name or password is None:
        return None
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _one_line(text: str) -> str:
    return " ".join(text.split())[:200]

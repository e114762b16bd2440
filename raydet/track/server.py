"""Queries of a tracking server, without mlflow: whether it is up, its version, who has access."""

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
"""Timeout of one request."""
DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}
NO_RESPONSE = (OSError, ValueError, http.client.HTTPException)
"""Errors where no server responds, or none that speaks HTTP."""
GATEWAY_FAILURES = {502, 503, 504}
"""Statuses of a proxy whose server does not respond."""
DATABRICKS = {"databricks", "databricks-uc"}
"""Tracking URIs without a scheme that are not directories."""
LOOPBACK = {"localhost", "127.0.0.1", "::1"}

_LIST = "/api/2.0/mlflow/experiments/search?max_results=1"


@dataclass(frozen=True, slots=True)
class Server:
    """The answers of an MLflow server."""

    version: str | None
    """None: unknown."""
    is_open: bool
    """Whether it lists its experiments without credentials."""
    refusal: int | None
    """The HTTP status that our credentials get; None: they are accepted."""
    said: str
    """The text of that response."""


def check_reachable(uri: str) -> None:
    """Check within seconds that a server responds, where MLflow would retry for minutes.

    Args:
        uri: of a server or a database; of other URIs only the kind is checked.

    Raises:
        TrackingError: nothing responds there, or the URI is of a directory.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("", "file") and uri not in DATABRICKS:
        raise TrackingError(
            f"cannot use the tracking URI {uri}: expected a server or a database, got a directory (MLflow's file "
            "store); use sqlite:///PATH, the path of a file, e.g. sqlite:///mlflow.db"
        )
    if parts.scheme in ("http", "https"):
        try:
            status, _ = _get(uri, "/health", authorization=None)
            if status in GATEWAY_FAILURES:
                raise OSError(f"a gateway returned {status}")
        except NO_RESPONSE as error:
            is_tls = isinstance(getattr(error, "reason", error), ssl.SSLError)
            if not is_tls:  # mlflow may trust other certificates
                raise _unreachable(uri, error) from None
        return
    port = DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if port is None or not parts.hostname:
        return
    try:
        socket.create_connection((parts.hostname, parts.port or port), timeout=ANSWER_S).close()
    except OSError as error:
        raise _unreachable(uri, error) from None


def ask_server(uri: str) -> Server:
    """Query an MLflow server, with credentials and without.

    Args:
        uri: http://... or https://...

    Raises:
        TrackingError: nothing responds there.
    """
    credentials = _authorization(uri)
    try:
        status, said = _get(uri, _LIST, authorization=credentials)
        status_without, _ = _get(uri, _LIST, authorization=None)
        version_status, version = _get(uri, "/version", authorization=credentials)
    except NO_RESPONSE as error:
        raise _unreachable(uri, error) from None
    return Server(
        version=version.strip() if version_status == 200 and re.match(r"\d+\.\d+", version) else None,
        is_open=status_without == 200,
        refusal=None if status == 200 else status,
        said=" ".join(said.split())[:200],
    )


def is_loopback(uri: str) -> bool:
    """Whether a URI is only reachable from this machine."""
    return urlsplit(uri).hostname in LOOPBACK


def redacted_uri(uri: str) -> str:
    """A URI without its password, for messages."""
    return re.sub(r"//[^/@\s]*@", "//***@", uri)


def _get(uri: str, path: str, *, authorization: str | None) -> tuple[int, str]:
    """HTTP status and text of a response; raises one of `NO_RESPONSE` if there is none."""
    parts = urlsplit(uri)
    url = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path.rstrip("/"), "", "")) + path
    request = urllib.request.Request(url, headers={"Authorization": authorization} if authorization else {})
    tls = ssl.create_default_context(cafile=os.environ.get("MLFLOW_TRACKING_SERVER_CERT_PATH"))
    if os.environ.get("MLFLOW_TRACKING_INSECURE_TLS", "").lower() in ("true", "1"):
        tls.check_hostname = False
        tls.verify_mode = ssl.CERT_NONE
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_S, context=tls) as response:
            return int(response.status), response.read(10_000).decode(errors="replace")
    except urllib.error.HTTPError as error:
        return error.code, error.read(10_000).decode(errors="replace")


def _unreachable(uri: str, error: Exception) -> TrackingError:
    reason = getattr(error, "reason", error)
    text = getattr(reason, "strerror", None) or str(reason) or type(reason).__name__
    return TrackingError(
        f"cannot use the tracking URI {redacted_uri(uri)}: nothing answers ({text}); start the server, correct the "
        "URI, or leave --tracking-uri out for a local sqlite file"
    )


def _authorization(uri: str) -> str | None:
    """Credentials as mlflow finds them: in the URI, the environment, or ~/.mlflow/credentials."""
    token = os.environ.get("MLFLOW_TRACKING_TOKEN")
    if token:
        return f"Bearer {token}"
    parts = urlsplit(uri)
    file = configparser.ConfigParser(interpolation=None)
    file.read(Path.home() / ".mlflow" / "credentials")
    stored = file["mlflow"] if file.has_section("mlflow") else {}
    name = os.environ.get("MLFLOW_TRACKING_USERNAME") or stored.get("mlflow_tracking_username")
    password = os.environ.get("MLFLOW_TRACKING_PASSWORD") or stored.get("mlflow_tracking_password")
    if parts.username:
        name, password = unquote(parts.username), unquote(parts.password or "")
    if not name or password is None:
        return None
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()

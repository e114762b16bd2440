"""URIs of sqlite databases: from the path of a file, and back to the file that MLflow opens."""

from __future__ import annotations

import warnings
from pathlib import Path
from urllib.parse import unquote, urlsplit

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError, SAWarning

from raydet.errors import TrackingError


def sqlite_uri(path: Path) -> str:
    """The tracking URI of a sqlite file, with the characters quoted that have a meaning in URIs (`?`, `%`, `#`)."""
    plain = f"sqlite:///{path.absolute()}"
    # What is quoted depends on the release of SQLAlchemy, which also reads the URI.
    uri = URL.create("sqlite", database=str(path.absolute())).render_as_string()
    # MLflow takes what follows sqlite:/// for a path, without unquoting it, and makes its directory.
    return uri if uri == plain else uri.replace("sqlite:", "sqlite+pysqlite:", 1)


def sqlite_path(uri: str) -> Path | None:
    """The absolute path of the file that a tracking URI opens; None: the URI is not of a sqlite database.

    Raises:
        TrackingError: the URI names no file, or has options that sqlite does not know, as an unquoted `?` in a path
            makes it.
    """
    try:
        url = make_url(uri)
    except ArgumentError:
        return None
    if url.get_backend_name() != "sqlite":
        return None
    with warnings.catch_warnings(record=True) as unknown_options:
        warnings.simplefilter("always", SAWarning)
        (name,), options = url.get_dialect()().create_connect_args(url)
    if unknown_options or ("?" in uri and not url.query):
        path, _, rest = uri.partition("?")
        raise TrackingError(
            f"cannot use the tracking URI {uri}: sqlite has no option {rest}; a question mark in a path is written as "
            f"%3F: {path}%3F{rest}"
        )
    if options.get("uri"):
        name = unquote(urlsplit(name).path)
    if name in ("", ":memory:"):
        raise TrackingError(
            f"cannot use the tracking URI {uri}: it keeps nothing once the command ends; use sqlite:///PATH"
        )
    return Path(name).absolute()

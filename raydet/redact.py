"""Redaction: secrets never leave the environment. How they are recognized, and how they are masked in all output.

Everything that raydet raises, logs, prints, writes into a journal or sends to the tracker goes through `redact`.
A secret is recognized by

    its context       passwords of URIs, signatures in queries, `password=...`, `Authorization: ...`, PEM private keys,
                      ids and tokens of known formats (AWS, GitHub, Hugging Face, Google, JWT)
    its value         that of an environment variable with a telling name (MLFLOW_TRACKING_PASSWORD,
                      AWS_SECRET_ACCESS_KEY, RAY_AUTH_TOKEN, ...), anywhere in the text

Not recognized: a secret of unknown format that is not in the environment and has no name beside it, and a value in the
environment of fewer than 8 letters, which would mask common words. Hashes, fingerprints and run ids stay.

Configs and command lines with secrets are refused, see `secret_in`: a config must start the same run again.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from urllib.parse import quote

HIDDEN = "***"
SHORTEST_VALUE = 8
"""Minimum length of an environment variable's value that is masked."""

_NAME = (
    r"(?:pass(?:word|wd|phrase)|secret|token|credentials?|signature"
    r"|(?:access|account|api|auth|private|secret|shared|signing)[_-]?key(?:[_-]?id)?)"
)
_QUOTE = r"""\\?["']"""
_PRIVATE_KEY = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL
)
# A password may contain an unquoted slash or @; digits and a slash after a colon are a port.
_PASSWORD = re.compile(r"""(?<=://)[^\s"'<>/@:]*:(?!\d+/)[^\s"'<>]+@""")
_SCHEME = re.compile(r"([a-z0-9]+)(?:\+\w+)?://$", re.I)
_USER = re.compile(r"""(?<=://)[^\s"'<>/@]+@""")
_SIGNATURE = re.compile(
    r"[?&](?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|Signature|sig)=", re.I
)
_FORMS = re.compile(
    r"(?<![A-Za-z0-9])(?:"
    r"(?:AKIA|ASIA|ABIA|ACCA|AGPA|AIDA|ANPA|ANVA|AROA)[A-Z0-9]{16}"
    r"|gh[opsur]_[A-Za-z0-9]{36,}|github_pat_\w{22,}|glpat-[\w-]{20,}|hf_[A-Za-z0-9]{30,}"
    r"|AIza[\w-]{35}|ya29\.[\w-]{20,}|xox[abprs]-[\w-]{10,}"
    r"|eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*"
    r")(?![A-Za-z0-9])"
)
_REPLACEMENTS = (
    (_PRIVATE_KEY, HIDDEN),
    (_PASSWORD, f"{HIDDEN}@"),
    (_USER, f"{HIDDEN}@"),
    (re.compile(r"(authorization[\"']?\s*[:=]\s*[\"']?(?:basic|bearer)\s+)[^\s\"',]+", re.I), rf"\1{HIDDEN}"),
    (re.compile(r"(\bbearer\s+)(?=\S*\d)[\w.~+/=-]{12,}", re.I), rf"\1{HIDDEN}"),
    (re.compile(r"([?&]sig=)[^\s\"'&]{6,}", re.I), rf"\1{HIDDEN}"),
    (re.compile(rf"({_NAME}(?:{_QUOTE})?\s*=\s*(?:{_QUOTE})?)[^\s\"'&;\\]{{6,}}", re.I), rf"\1{HIDDEN}"),
    (re.compile(rf"({_NAME}(?:{_QUOTE})?\s*:\s*{_QUOTE})[^\"'\\]{{6,}}", re.I), rf"\1{HIDDEN}"),
    # An unquoted value may be a sentence: "token: unexpected".
    (re.compile(rf"({_NAME}\s*:\s*)(?=[^\s\"']*\d)[^\s\"'&;\\]{{6,}}", re.I), rf"\1{HIDDEN}"),
    (_FORMS, HIDDEN),
)

_SECRET_WORDS = {
    "apikey",
    "credential",
    "credentials",
    "key",
    "passphrase",
    "passwd",
    "pwd",
    "secret",
    "token",
}
_HARMLESS_NAMES = {"PWD", "OLDPWD"}
_HARMLESS_ENDINGS = {"dir", "file", "mode", "path", "type", "uri", "url", "user", "username"}
_VARIABLES = {
    "http": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "https": "MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD",
    "postgresql": "PGPASSWORD",
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
}
"""Environment variables for credentials, by the scheme of the URI."""


def redact(text: str) -> str:
    """The text with its secrets masked; a text without secrets is returned unchanged, and redacting twice is the same.

    >>> redact("postgresql://raydet:hunter2@db/mlflow does not answer")
    'postgresql://***@db/mlflow does not answer'
    >>> redact("s3://images/flir?X-Amz-Signature=6c2f0d")
    's3://images/flir?X-Amz-Signature=***'
    """
    for value in secret_values(os.environ):
        text = text.replace(value, HIDDEN)
    for pattern, replacement in _REPLACEMENTS:
        text = pattern.sub(replacement, text)
    return text


def secret_values(environment: Mapping[str, str]) -> list[str]:
    """Values of variables with secret names, plain and URI-quoted; longest first."""
    values = {
        value
        for name, value in environment.items()
        if _is_secret_name(name) and len(value) >= SHORTEST_VALUE and not _is_existing_path(value)
    }
    return sorted(values | {quote(value, safe="") for value in values}, key=len, reverse=True)


def secret_in(text: str) -> str | None:
    """Which secret a text contains and where to put it instead, as the end of a sentence; None: it contains none.

    Only unambiguous cases count: passwords and signatures in URIs, private keys, known tokens.
    """
    if found := _PASSWORD.search(text):
        scheme = _SCHEME.search(text[: found.start()])
        return f"a password in it; give it in the environment ({_variables(scheme and scheme[1])})"
    if _SIGNATURE.search(text):
        return f"a signature in it; give s3://BUCKET/PATH, and keys in the environment ({_variables('s3')})"
    if _PRIVATE_KEY.search(text) or _FORMS.search(text):
        return f"a key or a token in it; give it in the environment ({_variables('s3')}, ...)"
    return None


class RedactingFormatter(logging.Formatter):
    """Formats log lines and tracebacks with their secrets masked."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        return redact(super().format(record))


def _is_secret_name(name: str) -> bool:
    """
    >>> [_is_secret_name(name) for name in ("PGPASSWORD", "AWS_ACCESS_KEY_ID", "RAY_AUTH_TOKEN", "HF_TOKEN")]
    [True, True, True, True]
    >>> [_is_secret_name(name) for name in ("PWD", "TOKENIZERS_PARALLELISM", "RAY_AUTH_TOKEN_PATH", "KEYBOARD")]
    [False, False, False, False]
    """
    words = name.lower().split("_")
    if name in _HARMLESS_NAMES or words[-1] in _HARMLESS_ENDINGS:
        return False
    return not _SECRET_WORDS.isdisjoint(words) or words[-1].endswith("password")


def _is_existing_path(value: str) -> bool:
    """Whether a value is the path of a file with a secret, not a secret."""
    return value.startswith(("/", "~", "./")) and os.path.exists(os.path.expanduser(value))


def _variables(scheme: str | None) -> str:
    return _VARIABLES.get(scheme or "") or ", ".join(dict.fromkeys(_VARIABLES.values()))

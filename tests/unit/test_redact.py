"""Planted secrets are masked in any context; hashes, ids, paths and plain words stay."""

from __future__ import annotations

import base64
import json
import logging
import pickle
import re
import string

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydet.cli import main
from raydet.config import ShardsSource
from raydet.errors import ConfigError, DataError
from raydet.recipes import recipe
from raydet.redact import HIDDEN, RedactingFormatter, redact, secret_in, secret_values

LETTERS = string.ascii_letters + string.digits
PASSWORDS = st.text(LETTERS + "!$%^*()_+-.~/@:", min_size=8, max_size=30).filter(
    lambda text: not re.match(r"\d+/", text)  # a port
)
KEYS = st.text(string.ascii_uppercase + string.digits, min_size=16, max_size=16)
SECRETS_40 = st.text(LETTERS + "/+", min_size=40, max_size=40)
TOKENS = st.text(LETTERS + "-_", min_size=20, max_size=60).filter(lambda text: any(map(str.isdigit, text)))
WORDS = st.text(string.ascii_lowercase + " .,\n", max_size=40)
PEM = "-----BEGIN RSA PRIVATE KEY-----\nMIIEow{}\n-----END RSA PRIVATE KEY-----\n"

PARTS = [
    "http://",
    "me:",
    "hunter22",
    "@",
    "host/",
    "?sig=",
    "&",
    "password",
    "=",
    ": ",
    '"',
    "\\",
    "Bearer ",
    "-----",
]
PARTS += [
    "BEGIN PRIVATE KEY-----",
    "END PRIVATE KEY-----",
    "AKIAABCDEFGHIJKLMNOP",
    HIDDEN,
    "123456/",
    "eyJabcdefgh.",
]


@settings(deadline=None)
@given(PASSWORDS, st.sampled_from(["http", "https", "postgresql", "mysql+pymysql", "s3", "mongodb"]), WORDS)
def test_passwords_of_uris(password: str, scheme: str, around: str) -> None:
    text = redact(f"{around} {scheme}://raydet:{password}@db.example:5432/mlflow {around}")
    assert text == f"{around} {scheme}://{HIDDEN}@db.example:5432/mlflow {around}"


@settings(deadline=None)
@given(
    TOKENS, st.sampled_from(["X-Amz-Signature", "X-Amz-Credential", "X-Goog-Signature", "Signature", "sig"])
)
def test_signatures_of_queries(signature: str, name: str) -> None:
    uri = f"https://bucket.example/flir?X-Amz-Date=20260101T000000Z&{name}={signature}&x=1"
    assert redact(uri) == uri.replace(signature, HIDDEN)
    assert secret_in(uri) is not None


@settings(deadline=None)
@given(KEYS, WORDS)
def test_ids_of_keys(key: str, around: str) -> None:
    for start in ("AKIA", "ASIA"):
        assert redact(f"{around} {start}{key} {around}") == f"{around} {HIDDEN} {around}"


@settings(deadline=None)
@given(SECRETS_40)
def test_keys_that_have_their_name_beside_them(secret: str) -> None:
    for text in (
        f"AWS_SECRET_ACCESS_KEY={secret}",
        f"[default]\naws_secret_access_key = {secret}",
        json.dumps({"secretAccessKey": secret, "region": "eu"}),
        json.dumps(json.dumps({"SessionToken": secret})),
        f"{{'api_key': '{secret}'}}",
    ):
        assert secret not in redact(text)


@settings(deadline=None)
@given(TOKENS)
def test_tokens_of_headers(token: str) -> None:
    for text in (
        f"Authorization: Bearer {token}",
        f"{{'authorization': 'Basic {base64.b64encode(token.encode()).decode()}'}}",
        f"x-ray-authorization: bearer {token}",
        f"X-Amz-Security-Token: {token}",
        f"RAY_AUTH_TOKEN={token}",
    ):
        assert token not in redact(text)
        assert base64.b64encode(token.encode()).decode() not in redact(text)


@settings(deadline=None)
@given(st.text(LETTERS + "+/", min_size=20, max_size=200), WORDS)
def test_private_keys(body: str, after: str) -> None:
    key = PEM.format(body)
    account = json.dumps({"type": "service_account", "private_key_id": "0" * 40, "private_key": key})
    for text in (key, account, key[: key.index("-----END")]):
        assert body not in redact(text)
        assert secret_in(text) is not None
    assert redact(f"{key} {after}") == f"{HIDDEN}\n {after}"
    assert "0" * 40 not in redact(account)
    assert json.loads(redact(account))["type"] == "service_account"


@settings(deadline=None)
@given(st.lists(st.sampled_from(PARTS) | WORDS, max_size=12).map("".join))
def test_cleaning_twice_changes_nothing_more(text: str) -> None:
    assert redact(redact(text)) == redact(text)


@settings(deadline=None)
@given(
    st.one_of(
        st.text("0123456789abcdef", min_size=12, max_size=64),  # fingerprints, sha1, sha256, ids of runs
        st.uuids().map(str),
        st.floats().map(str),
        st.integers().map(str),
    ),
    WORDS,
)
def test_hashes_and_numbers_stay(text: str, around: str) -> None:
    for line in (
        text,
        f"key={text}",
        json.dumps({"key": text, "sha256": text, "digest": text}),
        around + text,
    ):
        assert redact(line) == line
        assert secret_in(line) is None


@pytest.mark.parametrize(
    "text",
    [
        "s3://bucket/flir/a@2x.png",
        "sqlite:////runs/me@work/mlflow.db",
        "http://127.0.0.1:5000/#/experiments/1/runs?searchFilter=a@b",
        "postgresql+psycopg2://db.example/mlflow",
        "data.source.path: wanted a JSON token: unexpected end",
        "num_tokens=100000 class_token=False tokens: 196 per image",
        "check the credentials in the environment and their rights",
        "cannot join the Ray cluster at 10.0.0.1:6379: refused; check RAY_ADDRESS and the token",
        "exp_001_s3_r4_is0_mb0: mAP 0.4321, secret: no",
        "basic configuration of the bearer of bad news",
        "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----",
        '{"event": "started", "key": "0f3a9c2e11aa", "name": "control_rgb"}',
    ],
)
def test_plain_text_stays(text: str) -> None:
    assert redact(text) == text
    assert secret_in(text) is None


def test_every_recipe_stays_and_every_config_is_read_back() -> None:
    text = recipe("rgbte_mit_b5").to_json()
    assert redact(text) == text


@pytest.mark.parametrize(
    "name", ["MLFLOW_TRACKING_PASSWORD", "AWS_SECRET_ACCESS_KEY", "RAY_AUTH_TOKEN", "PGPASSWORD"]
)
def test_values_of_the_environment(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "wordless/9+x y")
    assert redact("the server says wordless/9+x y is wrong") == f"the server says {HIDDEN} is wrong"
    assert redact("GET /?q=wordless%2F9%2Bx%20y") == f"GET /?q={HIDDEN}"


def test_what_of_the_environment_is_no_secret() -> None:
    environment = {
        "PWD": "/home/somebody",
        "TOKENIZERS_PARALLELISM": "disabled",
        "RAY_AUTH_MODE": "token-mode",
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/var/run/token",
        "GOOGLE_APPLICATION_CREDENTIALS": "/",
        "MLFLOW_TRACKING_USERNAME": "somebody",
        "API_KEY": "short",
    }
    assert secret_values(environment) == []


def test_errors_are_clean_wherever_they_travel() -> None:
    error = DataError("postgresql://me:hunter22@db: no answer")
    assert str(error) == f"postgresql://{HIDDEN}@db: no answer"
    assert pickle.loads(pickle.dumps(error)).args == error.args


def test_log_lines_are_clean_with_their_tracebacks() -> None:
    try:
        raise OSError("cannot sign in with AKIAABCDEFGHIJKLMNOP")
    except OSError as error:
        record = logging.LogRecord(
            "raydet", logging.WARNING, "", 1, "at %s", ("http://a:hunter22@b",), (OSError, error, None)
        )
    text = RedactingFormatter("%(levelname)s %(message)s").format(record)
    assert text == f"WARNING at http://{HIDDEN}@b\nOSError: cannot sign in with {HIDDEN}"


def test_a_config_takes_no_secret_and_does_not_repeat_it() -> None:
    for path in ("s3://bucket/x?X-Amz-Signature=0f3a9c2e11aa", "s3://AKIAABCDEFGHIJKLMNOP:abcdef/g@bucket"):
        with pytest.raises(ConfigError) as caught:
            ShardsSource.from_json(json.dumps({"kind": "shards", "path": path}), where="config.json")
        assert "path: expected text without secrets, got a" in str(caught.value)
        assert "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY" in str(caught.value)
        assert not {"0f3a9c2e11aa", "AKIAABCDEFGHIJKLMNOP", "abcdef"} & set(str(caught.value).split("/@:="))


@pytest.mark.parametrize(
    ("arguments", "flag", "variable"),
    [
        (("--tracking-uri", "http://me:hunter22@host:5000"), "--tracking-uri", "MLFLOW_TRACKING_PASSWORD"),
        (("--tracking-uri=postgresql+psycopg2://me:hunter22@host/db",), "--tracking-uri", "PGPASSWORD"),
        (("--data", "shards:s3://b/x?X-Amz-Signature=hunter22"), "--data", "AWS_SECRET_ACCESS_KEY"),
        (("--set", "data.source.path=s3://hunter22:x@b"), "--set", "AWS_SECRET_ACCESS_KEY"),
        (
            ("chaos", "--", "tune", "--tracking-uri", "mysql://me:hunter22@host/db"),
            "--tracking-uri",
            "PGPASSWORD",
        ),
    ],
)
def test_a_command_line_with_a_secret_is_refused_in_one_line(
    arguments: tuple[str, ...], flag: str, variable: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["train", *arguments] if arguments[0] != "chaos" else arguments)
    error = capsys.readouterr().err
    assert left.value.code == 2
    assert error.startswith(f"error: {flag}: expected a URI without keys or passwords, got a ")
    assert variable in error
    assert "hunter22" not in error
    assert error.count("\n") == 1

"""Whether a storage location can be written from every node, and is the same on all of them."""

from __future__ import annotations

import shutil
import uuid
from contextlib import suppress

from raydet.data.storage import Store
from raydet.doctor.facts import space
from raydet.doctor.finding import Finding
from raydet.doctor.judge import disk
from raydet.doctor.nodes import NoAnswer, Nodes, answered
from raydet.errors import ConfigError, DataError

PATIENCE_S = 5.0
"""How long to retry object storage that fails."""
NODE_ANSWER_S = 60.0
"""How long a node may take to start a process, import pyarrow, and write."""
MARKER = "marker"


def check_storage(uri: str, nodes: Nodes) -> list[Finding]:
    """Write a small file here and one on every node; each must see the other's. All are removed again.

    Args:
        uri: a directory, s3://BUCKET/... or gs://BUCKET/...
    """
    try:
        store = Store(f"{uri.rstrip('/')}/.raydet-doctor-{uuid.uuid4().hex[:12]}", patience_s=PATIENCE_S)
    except ConfigError as error:
        return [Finding("storage", "failure", str(error))]
    parent = store.directory.parent if store.directory is not None else None
    is_new = parent is not None and not parent.exists()
    try:
        store.write(MARKER, b"raydet doctor")
    except DataError as error:
        _clear_directory(store)
        return [Finding("storage", "failure", f"this machine: {error}")]
    try:
        return _visits(uri, store, nodes) + ([] if parent is None else [disk("storage", space(parent))])
    except DataError as error:
        return [Finding("storage", "failure", f"this machine: {error}")]
    finally:
        _clear(store)
        if is_new and parent is not None:
            with suppress(OSError):  # it is in use meanwhile
                parent.rmdir()


def visit(store: Store, name: str) -> str:
    """On a node: look for the marker, and write a file. Returns what is wrong, on one line; empty: nothing."""
    try:
        if store.read(MARKER) is None:
            return "the file written by this machine is not there: it is another directory of the same name"
        store.write(name, b"raydet doctor")
    except DataError as error:
        return str(error)
    return ""


def _visits(uri: str, store: Store, nodes: Nodes) -> list[Finding]:
    files = {name: f"node_{index}" for index, name in enumerate(nodes.names)}
    answers = nodes.ask(visit, {name: (store, file) for name, file in files.items()}, timeout_s=NODE_ANSWER_S)
    findings = []
    for name, answer in answers.items():
        if isinstance(answer, NoAnswer):
            findings.append(Finding("storage", "failure", f"{name}: {answer.reason}"))
        elif answer:
            remedy = "use a directory that all nodes share (NFS, EFS, Filestore, a PVC)"
            findings.append(
                Finding("storage", "failure", f"{name}: {answer}", "" if ";" in answer else remedy)
            )
    written = set(store.names())
    for name, answer in answered(answers).items():
        if not answer and files[name] not in written:
            text = f"{name}: the file that it has written is not visible here"
            findings.append(Finding("storage", "failure", text, "use a directory that all nodes share"))
    if not findings:
        findings.append(Finding("storage", "ok", f"{uri}: written and read by all {len(files)} nodes"))
    return findings


def _clear(store: Store) -> None:
    """Remove everything, as far as the storage allows."""
    _clear_directory(store)
    if store.directory is None:
        with suppress(DataError):
            for name in store.names():
                store.delete(name)


def _clear_directory(store: Store) -> None:
    if store.directory is not None:
        shutil.rmtree(store.directory, ignore_errors=True)

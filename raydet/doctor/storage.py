"""Whether a place can be written from every node, and is the same place on all of them."""

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
"""With object storage that fails."""
NODE_ANSWER_S = 60.0
"""For a node to start a process, import pyarrow, and write."""
MARK = "mark"


def check_storage(uri: str, nodes: Nodes) -> list[Finding]:
    """Write a small file here and one on every node; each must see the other's. All are removed again.

    Args:
        uri: a directory, s3://BUCKET/... or gs://BUCKET/...
    """
    try:
        place = Store(f"{uri.rstrip('/')}/.raydet-doctor-{uuid.uuid4().hex[:12]}", patience_s=PATIENCE_S)
    except ConfigError as error:
        return [Finding("storage", "failure", str(error))]
    parent = place.directory.parent if place.directory is not None else None
    is_ours = parent is not None and not parent.exists()
    try:
        place.write(MARK, b"raydet doctor")
    except DataError as error:
        _clear_directory(place)
        return [Finding("storage", "failure", f"this machine: {error}")]
    try:
        findings = _visits(uri, place, nodes)
        return findings + ([disk("storage", space(parent))] if parent is not None else [])
    except DataError as error:
        return [Finding("storage", "failure", f"this machine: {error}")]
    finally:
        _clear(place)
        if is_ours and parent is not None:
            with suppress(OSError):  # somebody else has begun to use it
                parent.rmdir()


def visit(place: Store, name: str) -> str:
    """On a node: look for the mark, and leave another. What is wrong, on one line; empty: nothing."""
    try:
        if place.read(MARK) is None:
            return "what this machine has written is not there: it is another directory of the same name"
        place.write(name, b"raydet doctor")
    except DataError as error:
        return str(error)
    return ""


def _visits(uri: str, place: Store, nodes: Nodes) -> list[Finding]:
    files = {name: f"node_{index}" for index, name in enumerate(nodes.names)}
    answers = nodes.ask(visit, {name: (place, file) for name, file in files.items()}, timeout_s=NODE_ANSWER_S)
    findings = []
    for name, answer in answers.items():
        if isinstance(answer, NoAnswer):
            findings.append(Finding("storage", "failure", f"{name}: {answer.reason}"))
        elif answer:
            remedy = "" if ";" in answer else "name a place that all nodes share (NFS, EFS, Filestore, a PVC)"
            findings.append(Finding("storage", "failure", f"{name}: {answer}", remedy))
    written = set(place.names())
    for name, answer in answered(answers).items():
        if not answer and files[name] not in written:
            text = f"{name}: what it has written does not come here"
            findings.append(Finding("storage", "failure", text, "name a place that all nodes share"))
    if not findings:
        findings.append(Finding("storage", "ok", f"{uri}: written and read by all of {len(files)} nodes"))
    return findings


def _clear(place: Store) -> None:
    """As far as the place lets us."""
    _clear_directory(place)
    if place.directory is not None:
        return
    try:
        for name in place.names():
            place.delete(name)
    except DataError:
        return


def _clear_directory(place: Store) -> None:
    if place.directory is not None:
        shutil.rmtree(place.directory, ignore_errors=True)

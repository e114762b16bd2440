"""`--set path=value`: change single values of an experiment, with a hint where a path is misspelt."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TypeAlias

from raydet.config.experiment import Experiment
from raydet.config.moved import current_path
from raydet.errors import ConfigError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
JsonObject: TypeAlias = "dict[str, Json]"
Schema: TypeAlias = Mapping[str, Any]
"""A JSON schema, or a part of one."""


def parse_override(text: str) -> tuple[str, Json]:
    """Split `path=value`; the value is JSON where it can be read so, else a string.

    >>> parse_override("optim.lr=0.01")
    ('optim.lr', 0.01)
    >>> parse_override("model.backbone.variant=b5")
    ('model.backbone.variant', 'b5')
    >>> parse_override("model.fusion_stages=[3,4]")
    ('model.fusion_stages', [3, 4])

    Raises:
        ConfigError: there is no `=`.
    """
    path, equals, value = text.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set expects path=value, for example optim.lr=0.01, got {text!r}")
    try:
        return path, json.loads(value)
    except json.JSONDecodeError:
        return path, value


def apply_overrides(experiment: Experiment, overrides: Mapping[str, Any]) -> Experiment:
    """A new experiment with some values replaced.

    An object replaces a whole section (`model.fusion={"kind": "cmx"}`); `kind` alone (`model.fusion.kind=gaff`)
    changes the member of a union and keeps the fields that both members have.

    Raises:
        ConfigError: a path does not exist (the nearest ones are named), or the result is not a valid experiment.
    """
    overrides = {current_path(path): value for path, value in overrides.items()}
    tree: JsonObject = json.loads(experiment.model_dump_json())
    # `kind` first, outer before inner, so that `optim.kind=adamw optim.betas=[...]` works in any order.
    for path, value in sorted(overrides.items(), key=lambda i: (not i[0].endswith(".kind"), i[0].count("."))):
        tree = _replaced(tree, path.split("."), value, path)
        if path.endswith(".kind"):
            tree = _with_new_member(tree, path)
    where = "--set " + " ".join(f"{path}={json.dumps(value)}" for path, value in overrides.items())
    return Experiment.from_json(json.dumps(tree), where=where)


def flatten(tree: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Every leaf of a nested mapping with its dotted path."""
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _replaced(tree: JsonObject, keys: Sequence[str], value: Json, path: str) -> JsonObject:
    head, rest = keys[0], keys[1:]
    if head not in tree:
        raise ConfigError(_unknown(path, path.split(".")[: -len(keys)], list(tree)))
    if not rest:
        return tree | {head: value}
    section = tree[head]
    if not isinstance(section, dict):
        raise ConfigError(f"unknown config key {path!r}: {path[: -len('.'.join(rest)) - 1]!r} has no parts")
    return tree | {head: _replaced(section, rest, value, path)}


def _unknown(path: str, parents: Sequence[str], known: Sequence[str]) -> str:
    prefix = "".join(f"{parent}." for parent in parents)
    key = path[len(prefix) :].split(".")[0]
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {prefix}{close[0]}?" if close else f"known here: {', '.join(known)}"
    return f"unknown config key {path!r}; {hint}"


def _with_new_member(tree: JsonObject, path: str) -> JsonObject:
    """After `kind` has changed: drop the fields that the new member lacks, add its defaults."""
    parents = path.split(".")[:-1]
    schema: Schema = Experiment.model_json_schema()
    node, section = schema, tree
    for key in parents:
        node = _resolved(schema, _member(schema, node, section.get("kind"))["properties"][key])
        part = section[key]
        assert isinstance(part, dict), "`_replaced` has found its kind"
        section = part
    member = _member(schema, node, section["kind"])
    if "properties" not in member:
        return tree  # the validation names the legal kinds
    defaults = {key: field.get("default") for key, field in member["properties"].items()}
    kept = {key: value for key, value in section.items() if key in defaults}
    return _replaced(tree, parents, defaults | kept, path)


def _member(schema: Schema, node: Schema, kind: Json) -> Schema:
    """The member of a union that `kind` names; the node itself where it is no union or has no such member."""
    mapping = node.get("discriminator", {}).get("mapping", {})
    return _resolved(schema, {"$ref": mapping[kind]}) if isinstance(kind, str) and kind in mapping else node


def _resolved(schema: Schema, node: Schema) -> Schema:
    return schema["$defs"][node["$ref"].rsplit("/", 1)[1]] if "$ref" in node else node

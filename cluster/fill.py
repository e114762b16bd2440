"""Fill a manifest with values from the environment, or say which are missing.

    python cluster/fill.py cluster/aws.yaml > my-aws.yaml

Replaces ${RAYDET_...} and nothing else, so that the shell variables in a manifest's commands stay as they are. Several
files become one stream of YAML documents, for `kubectl apply -f -`. Exit code 2: a value is missing or invalid.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path

VARIABLE = re.compile(r"\$\{(RAYDET_[A-Z0-9_]+)\}")

FORMATS = {
    "IMAGE": (
        re.compile(r"[^\s@]+@sha256:[0-9a-f]{64}"),
        "NAME@sha256:DIGEST, so that every node runs the same",
    ),
    "BUCKET": (re.compile(r"[a-z0-9][a-z0-9._-]+"), "the name alone, without s3:// or gs://"),
}
"""Required formats of values, by the last word of their name: (pattern, description)."""

PLAIN = re.compile(r"[^\n\"'`$\\]+")
"""Values are inserted into quotes and commands: characters that could end these are refused."""


class FillError(ValueError):
    """A value is missing or invalid; the message is one line."""


def fill(text: str, values: Mapping[str, str], *, source: str) -> str:
    """The text with every ${RAYDET_...} replaced.

    Args:
        text: a manifest.
        values: by name, as in the environment.
        source: the manifest's name, for errors.

    Raises:
        FillError: values are missing (all are named), or one is invalid.
    """
    names = sorted(set(VARIABLE.findall(text)))
    missing = [name for name in names if not values.get(name)]
    if missing:
        raise FillError(f"{source}: {', '.join(missing)} not set; export it, see cluster/README.md")
    for name in names:
        pattern, text_format = FORMATS.get(
            name.rsplit("_", 1)[-1], (PLAIN, "one line without quotes, $, ` and \\")
        )
        if not pattern.fullmatch(values[name]):
            raise FillError(f"{source}: {name} must be {text_format}, got {values[name]!r}")
    return VARIABLE.sub(lambda match: values[match.group(1)], text)


def main(paths: list[str]) -> int:
    """Write the filled manifests to standard output; return the exit code."""
    if not paths:
        sys.stderr.write("usage: python cluster/fill.py MANIFEST...\n")
        return 2
    try:
        filled = [fill(Path(path).read_text(), os.environ, source=path) for path in paths]
    except (FillError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 2
    sys.stdout.write("---\n".join(filled))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

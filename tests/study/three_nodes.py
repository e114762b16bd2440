"""A Ray cluster of three nodes on this machine. Prints its address; kills or adds a node per line of standard input."""

from __future__ import annotations

import sys

from raydet.verify.nodes import LocalNodes


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    with LocalNodes(3, cpus=1) as nodes:
        say(nodes.address)
        for line in sys.stdin:
            if line.strip() == "kill":
                nodes.kill_one()
            else:
                nodes.add()
            say("done")


if __name__ == "__main__":
    main()

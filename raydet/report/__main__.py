"""Run `raydet report` as `python -m raydet.report`."""

import sys

from raydet.cli import main

if __name__ == "__main__":
    main(["report", *sys.argv[1:]])

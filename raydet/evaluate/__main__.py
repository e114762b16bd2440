"""`python -m raydet.evaluate` is `raydet evaluate`."""

import sys

from raydet.cli import main

if __name__ == "__main__":
    main(["evaluate", *sys.argv[1:]])

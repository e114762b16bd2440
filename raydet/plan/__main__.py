"""`python -m raydet.plan` is `raydet plan`."""

import sys

from raydet.cli import main

if __name__ == "__main__":
    main(["plan", *sys.argv[1:]])

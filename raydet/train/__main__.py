"""`python -m raydet.train` is `raydet train`."""

import sys

from raydet.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])

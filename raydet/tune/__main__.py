"""`python -m raydet.tune` is `raydet tune`."""

import sys

from raydet.cli import main

if __name__ == "__main__":
    main(["tune", *sys.argv[1:]])

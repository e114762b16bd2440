"""`python -m raydet.predict` is `raydet predict`."""

import sys

from raydet.cli import main

if __name__ == "__main__":
    main(["predict", *sys.argv[1:]])

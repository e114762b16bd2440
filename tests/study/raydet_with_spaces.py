"""The command line with the spaces of the tests beside those of the project."""

from __future__ import annotations

from pathlib import Path

import tune_spaces
from raydet.cli import main

if __name__ == "__main__":
    tune_spaces.__path__.append(str(Path(__file__).with_name("spaces")))
    main()

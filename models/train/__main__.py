"""python -m models.train: see train.py."""

import sys

from models.train.train import main

if __name__ == "__main__":
    sys.exit(main())

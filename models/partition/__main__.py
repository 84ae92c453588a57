"""python -m models.partition: see partition.py."""

import sys

from models.partition.partition import main

if __name__ == "__main__":
    sys.exit(main())

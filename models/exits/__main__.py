"""python -m models.exits: see heads.py."""

import sys

from models.exits.heads import main

if __name__ == "__main__":
    sys.exit(main())

"""python -m models.partition: see partition.py."""

import sys

from models.partition.partition import parser, run

if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))

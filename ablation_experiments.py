"""Measures what each feature contributes: all questions with it and without it.

python ablation_experiments.py [--only NAMES] [--questions 40] [--repeats 3] [--output DIR] [--compare JSON JSON]
"""

import sys

from edgecloud.ablate import parser, run

if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))

"""Checks an installation part by part, F1 to F4, with the models of the config: python test_framework.py

Starts both servers on free ports and stops them again. The exit code is 0 if all checks pass, else 1.
"""

import sys

try:
    from edgecloud.doctor import parser, run
except ImportError as error:
    sys.exit(f"error: {error.name} cannot be imported: run `make setup`, then `source .venv/bin/activate`")

if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))

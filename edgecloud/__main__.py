"""python -m edgecloud: the command `edgecloud`."""

import sys

from edgecloud.commands import main

if __name__ == "__main__":
    sys.exit(main())

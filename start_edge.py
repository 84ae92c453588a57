"""Starts one edge server: python start_edge.py [--config FILE] [--host HOST] [--port PORT] [--model MODEL]"""

import sys

from edgecloud.edge import parser, run

if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))

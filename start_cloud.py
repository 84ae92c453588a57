"""Starts one cloud server: python start_cloud.py [--config FILE] [--host HOST] [--port PORT] [--model PATH]"""

import sys

from edgecloud.cloud import parser, run

if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))

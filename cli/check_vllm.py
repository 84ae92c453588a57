"""Checks a release of vLLM, of which it downloads the wheel and reads the source: python -m cli.check_vllm [VERSION]

Nothing of it is installed, imported or unpacked.
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from cli.args import plain_parser, run_sync_program
from cloud.engine.version import READ, TESTED
from cloud.engine.vllm_hooks import HOOKS
from cloud.engine.vllm_source import missing, wheel
from common.errors import StartError


def main() -> None:
    parser = plain_parser("Check by its source that a release of vLLM has all that this project uses of it.")
    parser.add_argument("version", nargs="?", help="of the package vllm (default: the newest)")
    version = parser.parse_args().version
    with TemporaryDirectory(prefix="check-vllm-") as folder:
        path = downloaded(f"vllm=={version}" if version else "vllm", folder)
        release, faults = path.name.split("-")[1], missing(wheel(path), HOOKS)
    if faults:
        raise StartError(
            f"vLLM {release} lacks what this project uses of it:" + "".join(f"\n  {one}" for one in faults)
        )
    known = "tested" if release in TESTED else "known by source" if release in READ else "not known to this project yet"
    print(
        f"vLLM {release} ({known}) has all of the {sum(map(len, HOOKS.values()))} names that this project uses of it."
    )


def downloaded(requirement: str, folder: str) -> Path:
    """The wheel of `requirement`, about 400 MB, from pip's package index; raises StartError if there is none."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    pip = subprocess.run(
        [*command, "--only-binary", ":all:", "-d", folder, requirement], capture_output=True, text=True, check=False
    )
    if pip.returncode:
        reason = pip.stderr.strip().splitlines() or ["pip failed"]
        raise StartError(f"{requirement} could not be downloaded: {reason[-1].removeprefix('ERROR: ')}")
    (path,) = Path(folder).glob("*.whl")
    return path


if __name__ == "__main__":
    sys.exit(run_sync_program(main))

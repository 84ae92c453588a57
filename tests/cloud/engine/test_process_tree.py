"""Every process of a tree is killed, also stopped ones and orphans."""

import os
import signal
import subprocess
import sys

import psutil
import pytest

from cloud.engine.process_tree import ProcessTree

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


def test_a_process_that_has_ended_is_no_error() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    ProcessTree([process.pid]).kill()

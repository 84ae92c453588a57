"""An untested vLLM is logged; one without what the plugin needs does not start."""

import logging

import pytest
from vllm.v1.core.sched.scheduler import Scheduler

from cloud.engine import version
from common.errors import StartError


def test_the_installed_version_is_a_tested_one(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        version.check()
        version.check("0.32.0+cpu")
    assert not caplog.records


def test_an_untested_version_is_warned_of_with_both_numbers(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        version.check("0.99.1")
    assert "0.99.1" in caplog.text
    assert "0.32.0" in caplog.text


def test_a_version_without_a_hook_does_not_start() -> None:
    with pytest.raises(StartError, match=r"Scheduler\.no_such_method"):
        version.check("0.99.1", {Scheduler: ("no_such_method",)})

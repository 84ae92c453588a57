"""A scheduler that announces each of its steps: how many tokens it computes, and since when."""

import os
from typing import Any

from vllm.v1.core.sched.output import SchedulerOutput
from vllm.v1.core.sched.scheduler import Scheduler

from cloud.vllm_plugin.step_file import STEPS_FOLDER, StepFile


class AnnouncingScheduler(Scheduler):
    """vLLM's scheduler, whose steps the web server can see while they run."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._step_file = StepFile(os.environ.get(STEPS_FOLDER))

    def schedule(self, throttle_prefills: bool = False) -> SchedulerOutput:
        scheduled = super().schedule(throttle_prefills)
        self._step_file.begin(scheduled.total_num_scheduled_tokens)
        return scheduled

    def update_from_output(self, scheduler_output: SchedulerOutput, *args: Any, **kwargs: Any) -> dict[int, Any]:
        outputs: dict[int, Any] = super().update_from_output(scheduler_output, *args, **kwargs)
        self._step_file.end()
        return outputs

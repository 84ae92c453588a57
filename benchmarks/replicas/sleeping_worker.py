"""A worker of vLLM whose every step also sleeps: steps take time and no core, as on a GPU of another machine."""

import os
import time
from typing import Any

from vllm.v1.worker.cpu_worker import CPUWorker

from benchmarks.replicas.sleeping_variable import VARIABLE


class SleepingWorker(CPUWorker):  # type: ignore[misc]
    """For `cloud.engine_args.worker_cls`; the environment says how long it sleeps."""

    def execute_model(self, *args: Any, **kwargs: Any) -> Any:
        time.sleep(float(os.environ.get(VARIABLE, "0")))
        return super().execute_model(*args, **kwargs)

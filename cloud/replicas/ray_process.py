"""Runs a replica as an actor of Ray, which starts it again when it dies."""

import asyncio
import logging
import os
import signal
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import ray
from ray.exceptions import ActorDiedError, RayActorError, RayError

from cloud.replicas.actor import ReplicaActor, ReplicaSpec
from cloud.replicas.block_changes import BlockChange
from cloud.replicas.replica import ReplicaAddress
from common.config_cloud import RayConfig
from common.errors import EngineError, StartError
from common.files.installation import module_environment

log = logging.getLogger(__name__)

STOP_SECONDS = 10.0
"""How long a replica's engine may take to end."""
RETRY_SECONDS = 0.2
LOOPBACK = "127.0.0.1"
OBJECT_STORE_BYTES = 100 << 20
"""Nearly the least that Ray takes: no tensors pass through it."""
ENVIRONMENT = {
    "RAY_process_group_cleanup_enabled": "1",  # vLLM's processes end with the actor that started them, killed or not
    "RAY_USAGE_STATS_ENABLED": "0",
}


@contextmanager
def ray_cluster(config: RayConfig, replicas: int) -> Iterator[None]:
    """Ray within the block: the cluster at `config.address`, or one of this machine alone, which ends with it.

    Raises StartError. Blocks for seconds.
    """
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    own: dict[str, Any] = {
        "address": "local",
        "num_cpus": max(os.cpu_count() or 1, replicas),
        "include_dashboard": False,
        "object_store_memory": OBJECT_STORE_BYTES,
    }
    environment = {"PYTHONPATH": module_environment()["PYTHONPATH"]}
    options = {"address": config.address} if config.address else own
    try:
        ray.init(runtime_env={"env_vars": environment}, configure_logging=False, **options)
    except (RayError, ConnectionError, RuntimeError, ValueError, OSError) as error:
        raise StartError(f"cloud.ray: Ray cannot be used: {_first_line(error)}") from error
    try:
        yield
    finally:
        ray.shutdown()


class RayReplica:
    """One replica as an actor of Ray. `spec` is what the next actor runs that is not started by Ray itself."""

    def __init__(self, name: str, spec: ReplicaSpec, kind: type = ReplicaActor, cores: Collection[int] = ()) -> None:
        """`kind`: the class of the actor, with the methods of ReplicaActor. `cores`: those of an engine without GPU."""
        self.spec = spec
        self._kind = kind
        self._cores = cores
        self._name = name
        self._on_this_machine = not spec.cloud.ray.address
        self._actor: Any = None
        self._pid = 0

    async def start(self) -> ReplicaAddress:
        while True:
            try:
                actor = self._actor = self._actor or self._made()
                address: ReplicaAddress = await actor.start.remote()
                self._pid = address.pid
                return address
            except ActorDiedError as error:  # before it could be used, or for good
                if self._actor is actor:  # else it was stopped meanwhile, for another one
                    self._actor = None
                    raise StartError(_reason(error)) from error
            except RayActorError:  # Ray is starting it again
                await asyncio.sleep(RETRY_SECONDS)
            except RayError as error:
                raise StartError(f"Ray cannot start it: {_first_line(error)}") from error

    async def ended(self) -> None:
        try:
            with _errors_of_ray():
                reason = await self._actor.failed.remote()
        except ReplicaDied as error:
            log.warning("replica %s has died: %s", self._name, error.message)
            return
        await self.stop()
        raise StartError(reason)

    async def changes(self) -> AsyncGenerator[list[BlockChange], None]:
        with suppress(ReplicaDied), _errors_of_ray():
            async for changes in self._actor.changes.remote():
                yield await changes

    async def drain(self) -> None:
        with suppress(ReplicaDied), _errors_of_ray():
            await self._actor.drain.remote()

    async def stop(self) -> None:
        actor, self._actor = self._actor, None
        if actor is None:
            return
        try:
            async with asyncio.timeout(STOP_SECONDS):
                await actor.stop.remote()
        except RayActorError:
            pass
        except (TimeoutError, RayError) as error:
            log.warning("replica %s does not stop, and is killed: %s", self._name, _first_line(error))
            self._kill_here()
        with _errors_of_ray():
            ray.kill(actor, no_restart=True)

    async def kill(self) -> None:
        if self._on_this_machine:
            self._kill_here()
        elif self._actor is not None:
            with _errors_of_ray():
                ray.kill(self._actor, no_restart=False)

    def _kill_here(self) -> None:
        """Ends a process of this machine that stands still, and so hears nothing of Ray."""
        if self._on_this_machine and self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)

    def _made(self) -> Any:
        gpus = self.spec.cloud.model.tensor_parallel_size if ray.cluster_resources().get("GPU") else 0
        options = ray.remote(self._kind).options(
            name=f"edgecloud-{self._name}",
            num_cpus=1,
            num_gpus=gpus,
            max_restarts=-1,
            scheduling_strategy="SPREAD",
        )
        return options.remote(self.spec, LOOPBACK if self._on_this_machine else "", [] if gpus else list(self._cores))


def shares(cores: Sequence[int], replicas: int) -> list[list[int]]:
    """Cores for each replica of one machine: engines that share cores wait for each other's threads.

    Nothing is shared out where there are fewer cores than replicas.
    """
    if len(cores) < replicas:
        return [[] for _ in range(replicas)]
    ends = [len(cores) * number // replicas for number in range(replicas + 1)]
    return [list(cores[begin:end]) for begin, end in pairwise(ends)]


class ReplicaDied(EngineError):
    """A replica's actor has died, or is being started again."""


@contextmanager
def _errors_of_ray() -> Iterator[None]:
    """Ray's errors as ours: raises ReplicaDied where the actor is lost, EngineError for anything else."""
    try:
        yield
    except RayActorError as error:
        raise ReplicaDied(_first_line(error)) from error
    except RayError as error:
        raise EngineError(f"Ray: {_first_line(error)}") from error


def _reason(error: ActorDiedError) -> str:
    """Why an actor could not be made: the last line has the error that its own code has raised, if one did."""
    last = str(error).strip().splitlines()[-1]
    kind, _, message = last.partition(": ")
    return message if kind.startswith("common.errors.") else f"Ray cannot start it: {last}"


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]

"""Finds the GGUF file that a path, a folder or a hub id names, downloads it, and checks that llama.cpp can load it.

llama.cpp may abort its process over a hostile file, so `prepare` checks the file in a child process. The child also
downloads: Ctrl-C then ends a download at once, and the server uses no memory for it.
"""

import asyncio
import contextlib
import fnmatch
import os
import re
import signal
import sys
from collections.abc import Iterable
from pathlib import Path

import msgspec
from msgspec import structs

from common import hardware
from common.config_edge import EdgeModelConfig
from common.config_schema import Config
from common.errors import StartError
from common.files import hub, model_root
from common.files.installation import module_environment

TRIAL_S = 120
"""Seconds that reading the header and the trial load may take; a model of any size takes one or two."""
END_S = 5
"""Seconds that the child process has to clean up."""
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(.+))?")


async def prepared(config: Config) -> Config:
    """The config with the files to load in place of what names the edge's models; raises StartError as `prepare`."""
    model, embeddings = config.edge.model, config.edge.embeddings
    if model.path:
        model = model_root.edge_model(config)
        model = structs.replace(model, path=str(await prepare(model)))
    if embeddings.path:
        embeddings = structs.replace(embeddings, path=str(await prepare(model_root.embedding_model(config))))
    return structs.replace(config, edge=structs.replace(config.edge, model=model, embeddings=embeddings))


async def prepare(model: EdgeModelConfig) -> Path:
    """The file to load: found, downloaded if needed, checked, and loaded once on trial, all in a child process.

    Raises StartError, also if the machine's memory is too small. Shows the progress of a download on a terminal.
    """
    environment = module_environment() | {"PYTHONWARNINGS": "ignore", "GGML_NO_BACKTRACE": "1"}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", __name__, msgspec.json.encode(model)),
        stdout=asyncio.subprocess.PIPE,
        env=environment,
    )
    try:
        output, _ = await child.communicate()
    except asyncio.CancelledError:
        await _end(child)
        raise
    lines = output.decode(errors="replace").splitlines() or [""]
    if child.returncode == 0:
        return Path(lines[-1])
    if child.returncode == 1:
        raise StartError(lines[-1])
    reason = "its header takes too long to read" if child.returncode == -signal.SIGALRM else lines[-1]
    raise StartError(f"model {model.path}: llama.cpp would abort on it: {reason}")


def resolve(path: str, pattern: str = "") -> Path:
    """The GGUF file that `path` names, or its first part if it has several; blocks while it downloads.

    `path` is a file, a folder or a hub id `owner/name[:pattern]`; `pattern` (`Q4_K_M`, `*q8_0*`) chooses among the
    models of a folder or hub repository. A downloaded file is used again without a request to the hub.
    """
    local, hub_id = Path(path), _HUB_ID.fullmatch(path)
    if local.is_dir():
        return local / choose([file.name for file in local.iterdir()], pattern, path)[0]
    if hub_id and not local.exists() and not path.endswith(".gguf"):
        return _from_hub(hub_id[1], hub_id[2] or pattern)
    if not local.is_file():
        raise StartError(f"model file {path}: {'not a file' if local.exists() else 'No such file or directory'}")
    if part := _PART.fullmatch(local.name):
        return local.parent / choose([file.name for file in local.parent.iterdir()], f"{part[1]}-*.gguf", path)[0]
    return local


def choose(names: Iterable[str], pattern: str, where: str) -> list[str]:
    """The files of the only model in `names` that matches `pattern`, its parts in order; `where` is for errors.

    Raises StartError if no model matches, several do (the error lists them), or parts are missing.
    """
    wild = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        fits = fnmatch.fnmatch(name.lower(), wild.lower()) or fnmatch.fnmatch(Path(name).name.lower(), wild.lower())
        # mmproj files are vision projectors, which lie beside a model.
        if fits and name.endswith(".gguf") and (pattern or not Path(name).name.startswith("mmproj")):
            part = _PART.fullmatch(name)
            models.setdefault(f"{part[1]} ({int(part[3])} parts)" if part else name, []).append(name)
    matching = f" that match {pattern!r}" if pattern else ""
    if not models:
        raise StartError(f"model {where}: no GGUF files{matching}")
    if len(models) > 1:
        raise StartError(f"model {where}: several GGUF files{matching}; choose one by a pattern: {', '.join(models)}")
    (parts,) = models.values()
    last = _PART.fullmatch(parts[-1])
    if last and len(parts) != int(last[3]):
        raise StartError(f"model {where}: found only {len(parts)} of the {int(last[3])} parts of {last[1]}")
    return parts


def _from_hub(repository: str, pattern: str) -> Path:
    from httpx2 import HTTPError
    from huggingface_hub import hf_hub_download, list_repo_files, snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        with contextlib.suppress(LocalEntryNotFoundError, StartError):
            kept = Path(snapshot_download(repository, local_files_only=True, allow_patterns="*.gguf"))
            names = [str(file.relative_to(kept)) for file in kept.rglob("*.gguf")]
            return kept / choose(names, pattern, repository)[0]
        hub.check_reached(repository)
        names = choose(list_repo_files(repository), pattern, repository)
        first, *_ = [hf_hub_download(repository, name) for name in names]
        return Path(first)
    except GatedRepoError as error:
        raise StartError(f"model {repository}: accept its licence on the hub, then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise StartError(f"model {repository}: neither a local file nor a repository on the hub") from error
    except (HTTPError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise StartError(f"model {repository}: no local file, and the hub cannot deliver it: {reason}") from error


async def _end(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.terminate()  # a download then removes its partial file
        try:
            await asyncio.wait_for(child.wait(), END_S)
        except TimeoutError:
            child.kill()
            await child.wait()


def _check(model: EdgeModelConfig) -> Path:
    """The work of the child process."""
    sys.modules["mistral_common"] = None  # type: ignore[assignment]  # gguf imports it, needlessly: it takes a second
    from edge.llama import gguf_header, memory, trial_load

    file = resolve(model.path, model.pattern)
    signal.alarm(TRIAL_S)
    part = _PART.fullmatch(file.name)
    parts = [file.with_name(f"{part[1]}-{n + 1:05}-of-{part[3]}.gguf") for n in range(int(part[3]))] if part else [file]
    headers = [gguf_header.read_header(each) for each in parts]
    if not sum(header.tensors for header in headers):
        raise StartError(f"model file {file}: it has no tensors")
    os.dup2(sys.stdout.fileno(), sys.stderr.fileno())  # so that the parent reads llama.cpp's last line before it aborts
    if reason := trial_load.refusal(str(file)):
        raise StartError(f"model file {file}: llama.cpp cannot load it: {reason}")
    weights, shape = sum(each.stat().st_size for each in parts), memory.kv_shape(headers[0].metadata.get)
    if reason := memory.refusal(weights, shape, model, hardware.memory()):
        raise StartError(f"model file {file}: {reason}")
    return file


def _main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print(_check(msgspec.json.decode(sys.argv[1], type=EdgeModelConfig)))
    except StartError as error:
        print(error.message)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(_main())

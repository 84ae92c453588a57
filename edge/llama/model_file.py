"""Finds the GGUF file that a path, a folder or a hub id names, and makes sure that it can be loaded. Knows no engine.

A file may come from anywhere, and llama.cpp may end its process over a hostile one: `prepare` has another process
look at it first, which also downloads, so that Ctrl-C ends a download and the server's memory stays its own.
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

from common.errors import StartError

TRIAL_S = 120
"""Seconds that looking at a header and a trial load may take; a model of any size takes one or two."""
END_S = 5
"""Seconds that the other process has for cleaning up."""
_PART = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.gguf", re.DOTALL)
_HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)(?::(.+))?")


async def prepare(path: str, pattern: str = "") -> Path:
    """The file to load: found, downloaded if need be, checked, and loaded once on trial; all in another process.

    Raises StartError in one line. Progress of a download is shown on a terminal.
    """
    root = str(Path(__file__).parents[2])
    environment = os.environ | {"PYTHONPATH": root, "PYTHONWARNINGS": "ignore", "GGML_NO_BACKTRACE": "1"}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__, path, pattern), stdout=asyncio.subprocess.PIPE, env=environment
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
    why = "its header takes too long to read" if child.returncode == -signal.SIGALRM else lines[-1]
    raise StartError(f"model {path}: llama.cpp would not survive it: {why}")


def resolve(path: str, pattern: str = "") -> Path:
    """The GGUF file that `path` names, of a model in several parts the first; blocks while it downloads.

    `path` is a file, a folder or a hub id `owner/name[:pattern]`; `pattern` (`Q4_K_M`, `*q8_0*`) chooses among
    several models of a folder or hub repository. What was downloaded once is used again, without asking the hub.
    """
    local, hub = Path(path), _HUB_ID.fullmatch(path)
    if local.is_dir():
        return local / choose([file.name for file in local.iterdir()], pattern, path)[0]
    if hub and not local.exists() and not path.endswith(".gguf"):
        return _from_hub(hub[1], hub[2] or pattern)
    if not local.is_file():
        raise StartError(f"model file {path}: {'not a file' if local.exists() else 'No such file or directory'}")
    if part := _PART.fullmatch(local.name):
        return local.parent / choose([file.name for file in local.parent.iterdir()], f"{part[1]}-*.gguf", path)[0]
    return local


def choose(names: Iterable[str], pattern: str, where: str) -> list[str]:
    """The files of the one model among `names` that `pattern` fits, its parts in order.

    Raises StartError, with the candidates, if there is none, more than one, or not all of its parts.
    """
    wild = pattern if set(pattern) & set("*?[") else f"*{pattern}*"
    models: dict[str, list[str]] = {}
    for name in sorted(names):
        fits = fnmatch.fnmatch(name.lower(), wild.lower()) or fnmatch.fnmatch(Path(name).name.lower(), wild.lower())
        # A vision projector lies beside its model and is none itself.
        if fits and name.endswith(".gguf") and (pattern or not Path(name).name.startswith("mmproj")):
            part = _PART.fullmatch(name)
            models.setdefault(f"{part[1]} ({int(part[3])} parts)" if part else name, []).append(name)
    matching = f" that fit {pattern!r}" if pattern else ""
    if not models:
        raise StartError(f"model {where}: no GGUF files{matching} there")
    if len(models) > 1:
        raise StartError(f"model {where}: several GGUF files{matching}; choose by a pattern: {', '.join(models)}")
    (parts,) = models.values()
    last = _PART.fullmatch(parts[-1])
    if last and len(parts) != int(last[3]):
        raise StartError(f"model {where}: {len(parts)} of the {int(last[3])} parts of {last[1]} are there")
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
        names = choose(list_repo_files(repository), pattern, repository)
        first, *_ = [hf_hub_download(repository, name) for name in names]
        return Path(first)
    except GatedRepoError as error:
        raise StartError(f"model {repository}: accept its licence on the hub, then set HF_TOKEN") from error
    except RepositoryNotFoundError as error:
        raise StartError(f"model {repository}: neither a file here nor a repository on the hub") from error
    except (HTTPError, OSError, ValueError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise StartError(f"model {repository}: not a file here, and not to be had from the hub: {reason}") from error


async def _end(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.terminate()  # a download then removes what it has so far
        try:
            await asyncio.wait_for(child.wait(), END_S)
        except TimeoutError:
            child.kill()
            await child.wait()


def _look(path: str, pattern: str) -> Path:
    """What `prepare` has done in the other process."""
    sys.modules["mistral_common"] = None  # type: ignore[assignment]  # gguf would import it: a second for nothing
    from edge.llama import gguf_header, trial_load

    file = resolve(path, pattern)
    signal.alarm(TRIAL_S)
    part = _PART.fullmatch(file.name)
    parts = [file.with_name(f"{part[1]}-{n + 1:05}-of-{part[3]}.gguf") for n in range(int(part[3]))] if part else [file]
    if not sum(gguf_header.read_header(each).tensors for each in parts):
        raise StartError(f"model file {file}: no tensors in it")
    os.dup2(sys.stdout.fileno(), sys.stderr.fileno())  # the last words of llama.cpp, for the one who asked
    if why := trial_load.refusal(str(file)):
        raise StartError(f"model file {file}: llama.cpp cannot load it: {why}")
    return file


def _main() -> int:
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        print(_look(*sys.argv[1:]))
    except StartError as error:
        print(error.message)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(_main())

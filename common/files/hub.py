"""Checks that a model is where its name says, and that the Hugging Face hub can be reached; imports its client late."""

from pathlib import Path

from common.errors import StartError

SECONDS = 5.0
"""How long a connection and its answer may take."""


def check_reached(model: str) -> None:
    """Raises StartError, in one line about `model`, if the hub does not answer; any answer is one.

    Asks once: the hub's own client would try again for half a minute.
    """
    from httpx2 import HTTPError
    from huggingface_hub import constants, get_session

    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS)
    except (HTTPError, OSError) as error:
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        why = f"{constants.ENDPOINT}: {reason}"
        raise StartError(f"model {model}: no local file, and the hub cannot deliver it: {why}") from error


def check_model(model: str) -> None:
    """Raises StartError unless `model` is a directory with a model, or a hub id whose config can be downloaded.

    Blocks while it asks the hub.
    """
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError

    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise StartError(f"{model}: the directory holds no config.json")
        return
    if model.startswith(("/", ".", "~")):
        raise StartError(f"{model}: no such directory")
    try:
        if not try_to_load_from_cache(model, "config.json"):
            check_reached(model)
        hf_hub_download(model, "config.json")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise StartError(f"{model}: neither a directory nor a model that the hub can give") from error

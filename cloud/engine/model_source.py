"""Checks that the cloud's model is where its name says; needs no vLLM, whose import takes many seconds."""

from pathlib import Path

from huggingface_hub import hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError

from common.errors import StartError
from common.files import hub


def check_model(model: str) -> None:
    """Raises StartError unless `model` is a directory with a model, or a hub id whose config can be downloaded.

    Blocks while it asks the hub.
    """
    if Path(model).is_dir():
        if not (Path(model) / "config.json").is_file():
            raise StartError(f"{model}: the directory holds no config.json")
        return
    if model.startswith(("/", ".", "~")):
        raise StartError(f"{model}: no such directory")
    try:
        if not try_to_load_from_cache(model, "config.json"):
            hub.check_reached(model)
        hf_hub_download(model, "config.json")
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise StartError(f"{model}: neither a directory nor a model that the hub can give") from error

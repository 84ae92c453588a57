"""Where the models of a configuration are: at their path, in the folder `models.root`, or on the hub."""

from pathlib import Path

from msgspec.structs import replace

from common.config_cloud import CloudModelConfig
from common.config_edge import EdgeModelConfig
from common.config_schema import Config
from common.errors import StartError
from common.files.installation import shipped


def edge_model(config: Config) -> EdgeModelConfig:
    """The edge's model with the path to load it from: a hub id only if `models.root` is empty. Raises StartError."""
    model = config.edge.model
    repository, _, pattern = model.path.partition(":")
    found = _found("edge.model.path", model.path, [model.local, *_names(repository)], config.models.root)
    # A path that changed lies under the root: what the hub id says about files holds for the folder, too.
    return replace(model, path=found, pattern=model.pattern or (pattern if found != model.path else ""))


def embedding_model(config: Config) -> EdgeModelConfig:
    """The edge's embedding model, as `edge_model`."""
    model = config.edge.embeddings
    repository, _, pattern = model.path.partition(":")
    found = _found("edge.embeddings.path", model.path, [*_names(repository)], config.models.root)
    pattern = pattern if found != model.path else ""
    return EdgeModelConfig(path=found, pattern=pattern, context_length=model.context_length, sequences=1)


def cloud_model(config: Config) -> CloudModelConfig:
    """The cloud's model with the path to load it from: a hub id only if `models.root` is empty. Raises StartError."""
    model = config.cloud.model
    names = [model.local, *_names(model.path)]
    return replace(model, path=_found("cloud.model.path", model.path, names, config.models.root))


def _names(hub_id: str) -> tuple[str, str]:
    """`owner/name` and `name`."""
    return hub_id, hub_id.rpartition("/")[2]


def _found(key: str, path: str, names: list[str], root: str) -> str:
    """The path itself if it exists, also as shipped, or no root is set; else the first of `names` under the root."""
    own = str(Path(path).expanduser()) if path.startswith("~") else path  # as it is written: ./name is no hub id
    if (found := shipped(own)) != Path(own):
        return str(found)
    if not root or found.exists():
        return own
    if not Path(root).expanduser().is_dir():
        raise StartError(f"models.root: there is no folder {root}")
    places = [Path(root).expanduser() / name for name in dict.fromkeys(names) if name]
    for place in places:
        if place.exists():
            return str(place)
    raise StartError(f"{key}: {path} is not in models.root; tried {', '.join(map(str, places))}")

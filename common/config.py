"""Loads the configuration from file, environment and command line, and checks all of it at start."""

import difflib
import math
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

import msgspec
import yaml

from common.config_schema import CommunicationConfig, Config, InferenceConfig
from common.config_values import decode_secret, url_problem
from common.errors import ConfigError
from common.files.installation import CHECKOUT, IN_WHEEL, PROJECT, shipped
from common.protocol.codec import fault

ENV_PREFIX = "EDGECLOUD_"
FILE_SUFFIX = "_FILE"
DEFAULT_PATH = (PROJECT if CHECKOUT else IN_WHEEL) / "config" / "config.yaml"


def load(
    path: str | Path | None = None, flags: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> Config:
    """The config of `path` (default: config/config.yaml), overridden by the environment and then by `flags`.

    Environment: `EDGECLOUD_EDGE__SERVER__PORT=9000`, or the file that holds the value, as secrets are mounted:
    `EDGECLOUD_EDGE__SERVER__API_KEYS_FILE=PATH`; flags: `edge.server.port=9000`; values are read as YAML.
    Raises ConfigError in one line that starts with the path of the wrong key.
    """
    tree = _read(shipped(path or DEFAULT_PATH))
    for name, value in sorted((os.environ if environment is None else environment).items()):
        if name.startswith(ENV_PREFIX):
            text = _content(name, value) if name.endswith(FILE_SUFFIX) else value
            _put(tree, name[len(ENV_PREFIX) :].removesuffix(FILE_SUFFIX).lower().replace("__", "."), text)
    for flag in flags:
        key, equals, value = flag.partition("=")
        if not equals:
            raise ConfigError(f"{flag}: expected KEY=VALUE, for example edge.server.port=9000")
        _put(tree, key, value)
    return check(tree)


def with_changes(path: str | Path | None, changes: Mapping[str, object]) -> dict[str, Any]:
    """The tree of the config file at `path` (as for `load`) without default values, with `changes` applied.

    The keys of `changes` are dotted, as in flags.
    """
    defaults = msgspec.to_builtins(Config(), enc_hook=repr)
    tree = _without(_read(shipped(path or DEFAULT_PATH)), defaults)
    for key, value in changes.items():
        *parents, last = key.split(".")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return tree


def check(tree: object) -> Config:
    """Turns plain mappings into a Config; raises ConfigError for the first wrong key, type or value.

    The overrides of `experiments.ablations` are checked too, each applied to the rest.
    """
    config = _converted(tree)
    for number, ablation in enumerate(config.experiments.ablations):
        with_overrides(config, ablation.config_overrides, f"experiments.ablations[{number}].config_overrides")
    return config


def with_overrides(config: Config, overrides: Mapping[str, Any], where: str) -> Config:
    """The config with nested `overrides` applied.

    Raises ConfigError for a wrong key, type or value; its path begins with `where`, the place of the overrides.
    """
    try:
        return _converted(_merged(plain(config), overrides))
    except ConfigError as error:
        raise ConfigError(f"{where}.{error.message}") from error


def plain(config: Config) -> dict[str, Any]:
    """The config as plain mappings and values, with secrets in clear text: never show it."""
    tree: dict[str, Any] = msgspec.to_builtins(config, enc_hook=lambda secret: secret.reveal())
    return tree


def _merged(tree: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merges sections key by key; any other value is replaced."""
    merged = dict(tree)
    for key, value in overrides.items():
        below = merged.get(key)
        both = isinstance(value, dict) and isinstance(below, dict)
        merged[key] = _merged(below, value) if both and below is not None else value
    return merged


def _converted(tree: object) -> Config:
    try:
        config = msgspec.convert(tree, Config, dec_hook=decode_secret)
    except msgspec.ValidationError as error:
        message, where = fault(error, Config)
        path = where.lstrip(".")
        unknown = re.search(r"unknown field `(.+)`", message)
        if not unknown:
            raise ConfigError(f"{path or 'config'}: {message[0].lower()}{message[1:]}") from error
        key = unknown[1]
        near = difflib.get_close_matches(key, _keys(path), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(_keys(path))}"
        raise ConfigError(f"{path + '.' if path else ''}{key}: unknown key{hint}") from error
    _check_numbers(tree, "")
    _check_endpoints(config.communication)
    _check_keys(config)
    _check_prices(config)
    _check_patterns(config.inference)
    return config


def _check_numbers(value: object, path: str) -> None:
    """Infinity is a number above any least one, and no price, time or size."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{path}: must be a finite number")
    if isinstance(value, dict):
        for key, below in value.items():
            _check_numbers(below, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for number, below in enumerate(value):
            _check_numbers(below, f"{path}[{number}]")


def _check_endpoints(config: CommunicationConfig) -> None:
    if problem := url_problem(config.edge_endpoint):
        raise ConfigError(f"communication.edge_endpoint: {problem}")
    if config.clouds and config.cloud_endpoints:
        raise ConfigError("communication.cloud_endpoints: name all clouds in communication.clouds, or none")
    seen = set[str]()
    for key, entry in config.entries.items():
        if problem := url_problem(entry.url):
            raise ConfigError(f"{key}: {problem}")
        if entry.url.rstrip("/") in seen:
            raise ConfigError(f"{key}: {entry.url} is named twice")
        if entry.kind is not config.kind:
            raise ConfigError(f"{key}: is of kind {entry.kind}, the first cloud of kind {config.kind}: use one kind")
        seen.add(entry.url.rstrip("/"))


def _check_keys(config: Config) -> None:
    """An empty key would be shown by everybody."""
    lists = {
        "edge.server.api_keys": config.edge.server.api_keys,
        "edge.private_keys": config.edge.private_keys,
        "cloud.server.api_keys": config.cloud.server.api_keys,
    }
    paths = [(f"{path}[{number}]", key) for path, keys in lists.items() for number, key in enumerate(keys)]
    own = {
        "edge.quotas.keys": [entry.api_key for entry in config.edge.quotas.keys],
        "cloud.admission.keys": [entry.api_key for entry in config.cloud.admission.keys],
    }
    paths += [(f"{name}[{number}].api_key", key) for name, keys in own.items() for number, key in enumerate(keys)]
    for path, key in paths:
        if not key:
            raise ConfigError(f"{path}: is empty")
    for name, keys in own.items():
        for number, key in enumerate(keys):
            if key in keys[:number]:
                raise ConfigError(f"{name}[{number}].api_key: is named twice")


def _check_prices(config: Config) -> None:
    """Without prices nothing costs anything, and a limit of money would never be reached."""
    entries = config.communication.entries.values()
    if any(any(msgspec.structs.astuple(one)) for one in (config.communication.prices, *(e.prices for e in entries))):
        return
    quotas = config.edge.quotas
    limits = {"inference.budget.daily": config.inference.budget.daily, "edge.quotas.cost_per_day": quotas.cost_per_day}
    limits |= {f"edge.quotas.keys[{n}].cost_per_day": one.cost_per_day or 0 for n, one in enumerate(quotas.keys)}
    for path, limit in limits.items():
        if limit:
            raise ConfigError(f"{path}: needs prices, which communication.prices has")


def _check_patterns(config: InferenceConfig) -> None:
    for number, pattern in enumerate(config.private_patterns):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"inference.private_patterns[{number}]: not a regular expression ({error})") from error


def show(config: Config) -> str:
    """The config as YAML, with secrets masked."""
    return msgspec.yaml.encode(config, enc_hook=repr).decode()


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, got a {type(tree).__name__}")
    return tree or {}


def _content(name: str, path: str) -> str:
    """The text of a file that the environment variable `name` names."""
    try:
        return Path(path).read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{name}: {path} cannot be read ({getattr(error, 'strerror', 'not UTF-8')})") from error


def _without(tree: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """The part of `tree` that differs from the defaults."""
    kept = {}
    for key, value in tree.items():
        if isinstance(value, dict) and isinstance(defaults.get(key), dict):
            value = _without(value, defaults[key]) or defaults[key]
        if value != defaults.get(key):
            kept[key] = value
    return kept


def _put(tree: dict[str, Any], key: str, value: str) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.setdefault(parent, {})
        if not isinstance(tree, dict):
            raise ConfigError(f"{key}: {parent} is a value, not a section")
    try:
        tree[last] = yaml.safe_load(value)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{key}: not a YAML value") from error


def _keys(path: str) -> list[str]:
    """The known keys of the section at `path` ("" is the whole config)."""
    section: Any = Config
    for part in filter(None, path.split(".")):
        name = part.partition("[")[0]
        section = get_type_hints(section)[name]
        if "[" in part:
            section = get_args(section)[0]
    return list(section.__struct_fields__)

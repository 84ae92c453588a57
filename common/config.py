"""The configuration, checked whole at start: file, environment, command line. Knows nothing of its users."""

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_type_hints
from urllib.parse import urlsplit

import msgspec
import yaml
from msgspec import Meta, Struct, field

from common.errors import ConfigError
from common.policy import Gate, Plan
from common.types import ConfidenceStrategy, Objective, Way

ENV_PREFIX = "EDGECLOUD_"
DEFAULT_PATH = Path(__file__).parent.parent / "config" / "config.yaml"

Share = Annotated[float, Meta(ge=0, le=1)]
OpenShare = Annotated[float, Meta(gt=0, lt=1)]
Count = Annotated[int, Meta(ge=0)]
Positive = Annotated[int, Meta(ge=1)]
Seconds = Annotated[float, Meta(gt=0)]
Port = Annotated[int, Meta(ge=0, le=65535)]


class Section(Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A mapping in the config file; every key has a default, unknown ones are refused."""


class Secret:
    """A key that is shown nowhere: printed, logged or written out it is `***`."""

    def __init__(self, value: str = "") -> None:
        self._value = value

    def reveal(self) -> str:
        return self._value

    def __bool__(self) -> bool:
        return bool(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self._value == other._value

    def __hash__(self) -> int:
        return hash(self._value)

    def __repr__(self) -> str:
        return "***" if self._value else ""


NO_KEY = Secret()


class ServerConfig(Section, frozen=True):
    host: str = "localhost"
    port: Port = 8080
    drain_seconds: Annotated[float, Meta(ge=0)] = 10.0
    api_keys: list[Secret] = []
    cors_origins: list[str] = []


class EdgeModelConfig(Section, frozen=True):
    path: str = "models/demo-edge.gguf"
    pattern: str = ""
    context_length: Positive = 1024
    kv_type: Literal["f16", "f32", "q8_0"] = "f16"
    kv_unified: bool = False
    flash_attention: bool | Literal["auto"] = "auto"  # YAML reads on and off as true and false
    gpu_layers: Annotated[int, Meta(ge=-1)] = 0
    threads: Count = 0
    sequences: Annotated[int, Meta(ge=1, le=64)] = 4


class LimitsConfig(Section, frozen=True):
    max_queue: Count = 64
    max_tokens_request: Count = 0
    max_tokens_total: Count = 0


class ConfidenceConfig(Section, frozen=True):
    strategy: ConfidenceStrategy = ConfidenceStrategy.MAX_PROB
    threshold: Share = 0.8
    product_threshold: Share = 0.3
    temperature: Annotated[float, Meta(gt=0)] = 1.5
    top_k: Positive = 5


class EdgeCacheConfig(Section, frozen=True):
    enabled: bool = True
    max_size: Positive = 1000
    ram_bytes: Count = 1 << 30
    directory: str = ""
    disk_bytes: Count = 4 << 30
    enable_compression: bool = False


class EdgeConfig(Section, frozen=True):
    model: EdgeModelConfig = EdgeModelConfig()
    server: ServerConfig = ServerConfig()
    confidence: ConfidenceConfig = ConfidenceConfig()
    kv_cache: EdgeCacheConfig = EdgeCacheConfig()
    limits: LimitsConfig = LimitsConfig()


class CloudModelConfig(Section, frozen=True):
    path: str = "models/demo-cloud"
    context_length: Positive = 1024
    tensor_parallel_size: Positive = 1
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] = 0.9
    dtype: str = "auto"


class BatchConfig(Section, frozen=True):
    enabled: bool = True
    max_batch_size: Positive = 32
    timeout_ms: Count = 10


class DraftVerifierConfig(Section, frozen=True):
    acceptance_threshold: Share = 0.8
    max_draft_tokens: Positive = 16
    resident_sessions: Count = 8
    resident_idle_seconds: Seconds = 10.0
    batch: BatchConfig = BatchConfig()


class CloudCacheConfig(Section, frozen=True):
    enabled: bool = True
    max_blocks: Count = 0
    enable_prefix_caching: bool = True


class AdmissionConfig(Section, frozen=True):
    max_requests: Positive = 256
    max_tokens: Positive = 262144


class EngineConfig(Section, frozen=True):
    hang_seconds: Seconds = 4.0


class CloudConfig(Section, frozen=True):
    model: CloudModelConfig = CloudModelConfig()
    server: ServerConfig = ServerConfig(port=8081)
    admission: AdmissionConfig = AdmissionConfig()
    engine: EngineConfig = EngineConfig()
    draft_verifier: DraftVerifierConfig = DraftVerifierConfig()
    kv_cache: CloudCacheConfig = CloudCacheConfig()
    engine_args: dict[str, Any] = {}


class HttpClientConfig(Section, frozen=True):
    timeout: Seconds = 30.0
    connect_timeout: Seconds = 2.0
    first_byte_timeout: Seconds = 15.0
    idle_timeout: Seconds = 10.0
    max_retries: Annotated[int, Meta(ge=0, le=10)] = 3
    connection_pool_size: Positive = 100
    compression: Literal["auto", "none"] = "auto"
    optimized: bool = True


class BreakerConfig(Section, frozen=True):
    failures: Positive = 3
    probe_seconds: Annotated[float, Meta(ge=0.05)] = 2.0


class CommunicationConfig(Section, frozen=True):
    edge_endpoint: str = "http://localhost:8080"
    cloud_endpoint: str = "http://localhost:8081"
    cloud_endpoints: list[str] = []
    edge_api_key: Secret = NO_KEY
    cloud_api_key: Secret = NO_KEY
    http_client: HttpClientConfig = HttpClientConfig()
    breaker: BreakerConfig = BreakerConfig()

    @property
    def clouds(self) -> dict[str, str]:
        """The URL of each cloud by the path of the key that names it."""
        more = {f"communication.cloud_endpoints[{i}]": url for i, url in enumerate(self.cloud_endpoints)}
        return {"communication.cloud_endpoint": self.cloud_endpoint} | more


class FeaturesConfig(Section, frozen=True):
    use_draft_verify: bool = True
    use_confidence_check: bool = True
    use_kv_cache: bool = True


class OnlineConfig(Section, frozen=True):
    target_cloud_rate: OpenShare | None = None
    target_quality: OpenShare | None = None
    rate: Annotated[float, Meta(gt=0, le=4)] = 0.1
    explore: Share = 0.05

    def __post_init__(self) -> None:
        if self.target_cloud_rate is not None and self.target_quality is not None:
            raise ValueError("Has two targets: give either target_cloud_rate or target_quality")

    @property
    def enabled(self) -> bool:
        """Whether the gate follows the traffic at all."""
        return self.target_cloud_rate is not None or self.target_quality is not None


class InferenceConfig(Section, frozen=True):
    features: FeaturesConfig = FeaturesConfig()
    max_draft_tokens: Annotated[int, Meta(ge=1, le=128)] = 8
    stretch_tokens: Annotated[int, Meta(ge=1, le=128)] = 8
    objective: Objective = Objective.LATENCY
    way: Way = Way.AUTO
    draft_ahead: bool = True
    fallback: bool = True
    private_patterns: list[str] = []
    online: OnlineConfig = OnlineConfig()


class AblationConfig(Section, frozen=True):
    name: str
    description: str = ""
    config_overrides: dict[str, Any] = {}


class ExperimentsConfig(Section, frozen=True):
    ablations: list[AblationConfig] = []


class LoggingConfig(Section, frozen=True):
    level: Annotated[str, Meta(pattern="^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"


class Config(Section, frozen=True):
    edge: EdgeConfig = field(default_factory=EdgeConfig)
    cloud: CloudConfig = field(default_factory=CloudConfig)
    communication: CommunicationConfig = field(default_factory=CommunicationConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    experiments: ExperimentsConfig = field(default_factory=ExperimentsConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    @property
    def plan(self) -> Plan:
        """How requests are answered that do not say otherwise."""
        features, confidence = self.inference.features, self.edge.confidence
        return Plan(
            use_confidence_check=features.use_confidence_check,
            use_draft_verify=features.use_draft_verify,
            gate=Gate(confidence.threshold, confidence.product_threshold),
            max_draft_tokens=self.inference.max_draft_tokens,
            stretch_tokens=self.inference.stretch_tokens,
            objective=self.inference.objective,
            way=self.inference.way,
            draft_ahead=self.inference.draft_ahead,
            fallback=self.inference.fallback,
        )


def load(
    path: str | Path | None = None, flags: Iterable[str] = (), environment: Mapping[str, str] | None = None
) -> Config:
    """The config of `path` (default: config/config.yaml), overridden by the environment and then by `flags`.

    Environment: `EDGECLOUD_EDGE__SERVER__PORT=9000`; flags: `edge.server.port=9000`; values are read as YAML.
    Raises ConfigError in one line that starts with the path of the wrong key.
    """
    tree = _read(Path(path or DEFAULT_PATH))
    for name, value in sorted((os.environ if environment is None else environment).items()):
        if name.startswith(ENV_PREFIX):
            _put(tree, name[len(ENV_PREFIX) :].lower().replace("__", "."), value)
    for flag in flags:
        key, equals, value = flag.partition("=")
        if not equals:
            raise ConfigError(f"{flag}: expected KEY=VALUE, for example edge.server.port=9000")
        _put(tree, key, value)
    return check(tree)


def with_changes(path: str | Path | None, changes: Mapping[str, object]) -> dict[str, Any]:
    """The tree of the config file at `path` (as for `load`) without what the defaults say too, then `changes`.

    The keys of `changes` have dots, as in flags.
    """
    defaults = msgspec.to_builtins(Config(), enc_hook=repr)
    tree = _without(_read(Path(path or DEFAULT_PATH)), defaults)
    for key, value in changes.items():
        *parents, last = key.split(".")
        section = tree
        for parent in parents:
            section = section.setdefault(parent, {})
        section[last] = value
    return tree


def check(tree: object) -> Config:
    """Turns plain mappings into a Config; raises ConfigError for the first wrong key, type or value."""
    try:
        config = msgspec.convert(tree, Config, dec_hook=_secret)
    except msgspec.ValidationError as error:
        message, _, where = str(error).partition(" - at `$")
        path = where.strip("`.")
        unknown = re.search(r"unknown field `(.+)`", message)
        if not unknown:
            raise ConfigError(f"{path or 'config'}: {message[0].lower()}{message[1:]}") from error
        key = unknown[1]
        near = difflib.get_close_matches(key, _keys(path), n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; known here: {', '.join(_keys(path))}"
        raise ConfigError(f"{path + '.' if path else ''}{key}: unknown key{hint}") from error
    _check_endpoints(config.communication)
    _check_patterns(config.inference)
    return config


def _check_endpoints(config: CommunicationConfig) -> None:
    seen = set[str]()
    for key, url in ({"communication.edge_endpoint": config.edge_endpoint} | config.clouds).items():
        if problem := url_problem(url):
            raise ConfigError(f"{key}: {problem}")
        if key in config.clouds and url.rstrip("/") in seen:
            raise ConfigError(f"{key}: {url} is named twice")
        seen |= {url.rstrip("/")} if key in config.clouds else set()


def _check_patterns(config: InferenceConfig) -> None:
    for number, pattern in enumerate(config.private_patterns):
        try:
            re.compile(pattern)
        except re.error as error:
            raise ConfigError(f"inference.private_patterns[{number}]: not a regular expression ({error})") from error


def url_problem(url: str) -> str | None:
    """What keeps `url` from being a server's address, if anything; a password in it is not repeated."""
    try:
        parts = urlsplit(url)
        port = parts.port  # raises where it is no number of a port
    except ValueError as error:
        return f"{url!r} is no URL ({error})"
    if "@" in parts.netloc:
        return "a user or password does not belong in a URL; set the API key instead"
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        return f"{url!r} is no URL of a server, like http://localhost:8081"
    if parts.query or parts.fragment or any(character.isspace() for character in url):
        return f"{url!r} is more than a server's address, like http://localhost:8081"
    return None


def show(config: Config) -> str:
    """The config as YAML, for people; secrets stay secret."""
    return msgspec.yaml.encode(config, enc_hook=repr).decode()


def _secret(type_: type, value: object) -> object:
    if type_ is not Secret or not isinstance(value, str):
        raise TypeError(f"Expected `str`, got `{type(value).__name__}`")
    return Secret(value)


def _read(path: Path) -> dict[str, Any]:
    try:
        tree = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not YAML ({' '.join(str(error).split())})") from error
    if tree is not None and not isinstance(tree, dict):
        raise ConfigError(f"{path}: expected keys and values, got a {type(tree).__name__}")
    return tree or {}


def _without(tree: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """What of `tree` differs from the defaults; sections that do not are left out."""
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
    except yaml.YAMLError as error:
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

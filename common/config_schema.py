"""Every key of the configuration: its type, range and default. What each means is said in config/config.yaml."""

from typing import Annotated, Any, Literal

from msgspec import Meta, Struct, field
from msgspec.structs import asdict

from common.decoding.policy import Gate, Plan
from common.types import ConfidenceStrategy, Objective, StateEncoding, VerificationMode

Share = Annotated[float, Meta(ge=0, le=1)]
OpenShare = Annotated[float, Meta(gt=0, lt=1)]
Weight = Annotated[float, Meta(ge=0, le=1e6)]
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


class WeightsConfig(Section, frozen=True):
    max_prob: Weight = 0.4
    entropy: Weight = 0.3
    temperature: Weight = 0.0
    top_k_agg: Weight = 0.3

    def __post_init__(self) -> None:
        if not any(asdict(self).values()):
            raise ValueError("Are all 0: an ensemble needs one strategy at least")


class ConfidenceConfig(Section, frozen=True):
    strategy: ConfidenceStrategy = ConfidenceStrategy.MAX_PROB
    threshold: Share = 0.8
    product_threshold: Share = 0.3
    temperature: Annotated[float, Meta(gt=0)] = 1.5
    top_k: Positive = 5
    weights: WeightsConfig = WeightsConfig()


class EdgeCacheConfig(Section, frozen=True):
    enabled: bool = True
    max_size: Positive = 1000
    ram_bytes: Count = 1 << 30
    directory: str = ""
    disk_bytes: Count = 4 << 30
    enable_compression: bool = False


class EdgeSplitConfig(Section, frozen=True):
    manifest: str = ""
    thresholds: Annotated[list[Annotated[float, Meta(ge=0)]], Meta(min_length=1)] = field(default_factory=lambda: [0.8])
    latency_budget_ms: Annotated[float, Meta(gt=0)] | None = None
    transfer: StateEncoding = StateEncoding.FP16
    async_upload: bool = True
    deadline_ms: Positive = 2000


class EdgeConfig(Section, frozen=True):
    model: EdgeModelConfig = EdgeModelConfig()
    server: ServerConfig = ServerConfig()
    confidence: ConfidenceConfig = ConfidenceConfig()
    kv_cache: EdgeCacheConfig = EdgeCacheConfig()
    limits: LimitsConfig = LimitsConfig()
    split: EdgeSplitConfig = EdgeSplitConfig()


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


class CloudSplitConfig(Section, frozen=True):
    manifest: str = ""
    session_seconds: Seconds = 60.0
    session_bytes: Positive = 16 << 20
    total_bytes: Positive = 1 << 30
    engine_args: dict[str, Any] = {}


class CloudConfig(Section, frozen=True):
    model: CloudModelConfig = CloudModelConfig()
    server: ServerConfig = ServerConfig(port=8081)
    admission: AdmissionConfig = AdmissionConfig()
    engine: EngineConfig = EngineConfig()
    draft_verifier: DraftVerifierConfig = DraftVerifierConfig()
    kv_cache: CloudCacheConfig = CloudCacheConfig()
    split: CloudSplitConfig = CloudSplitConfig()
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
    max_draft_tokens: Annotated[int, Meta(ge=1, le=128)] = 16
    stretch_tokens: Annotated[int, Meta(ge=1, le=128)] = 8
    objective: Objective = Objective.LATENCY
    way: VerificationMode = VerificationMode.AUTO
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

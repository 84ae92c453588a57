"""The whole configuration: its parts, and the keys that edge, cloud and clients share.

`make docs` writes docs/CONFIG.md from the docstrings behind the keys.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from common.config_cloud import CloudConfig
from common.config_edge import EdgeConfig
from common.config_values import NO_KEY, OpenShare, Positive, Seconds, Secret, Section, Share
from common.enums import Objective, VerificationMode

DEPRECATED = {
    "cloud.draft_verifier.acceptance_threshold": "no effect; exact rejection sampling decides without a threshold",
    "cloud.draft_verifier.batch.timeout_ms": "no effect; a step of vLLM never waits for a batch to fill",
}
"""Keys that are read and have no effect, and why."""


class HttpClientConfig(Section, frozen=True):
    timeout: Seconds = 30.0
    """Seconds for one call, retries included; for one event of a stream of text. A server that works renews it."""
    connect_timeout: Seconds = 2.0
    """Seconds until a connection is made."""
    first_byte_timeout: Seconds = 15.0
    """Seconds until a cloud answers a verify, or says that it works on it: a long prompt may take minutes."""
    idle_timeout: Seconds = 10.0
    """Seconds without a frame of a cloud's stream or a reply to a ping."""
    max_retries: Annotated[int, Meta(ge=0, le=10)] = 3
    """Retries after a connection that could not be made or broke."""
    connection_pool_size: Positive = 100
    """Open connections per server."""
    compression: Literal["auto", "none"] = "auto"
    """`auto`: zstd for bodies of 1 KiB and more."""
    optimized: bool = True
    """false (F4 off): JSON, a connection per call, no retry, the whole prefix in every round."""


class BreakerConfig(Section, frozen=True):
    """For each cloud: a lost cloud is not asked, so that answers do not wait for it."""

    failures: Positive = 3
    """Failed calls in a row after which a cloud is not asked any more."""
    probe_seconds: Annotated[float, Meta(ge=0.05)] = 2.0
    """Seconds between two probes of a lost cloud."""


class CommunicationConfig(Section, frozen=True):
    """F4."""

    edge_endpoint: str = "http://localhost:8080"
    """URL of the edge server, for our clients."""
    cloud_endpoint: str = "http://localhost:8081"
    """URL of the cloud server, for the edge and our clients."""
    cloud_endpoints: list[str] = field(default_factory=list)
    """URLs of more clouds with the same model; one is chosen by prompt, load and health."""
    edge_api_key: Secret = NO_KEY
    """Key that our clients show to the edge; better set as `EDGECLOUD_COMMUNICATION__EDGE_API_KEY`."""
    cloud_api_key: Secret = NO_KEY
    """Key that the edge and our clients show to the clouds."""
    http_client: HttpClientConfig = HttpClientConfig()
    breaker: BreakerConfig = BreakerConfig()

    @property
    def clouds(self) -> dict[str, str]:
        """The URL of each cloud by the path of the key that names it."""
        more = {f"communication.cloud_endpoints[{i}]": url for i, url in enumerate(self.cloud_endpoints)}
        return {"communication.cloud_endpoint": self.cloud_endpoint} | more


class FeaturesConfig(Section, frozen=True):
    """The parts that can be switched off."""

    use_draft_verify: bool = True
    """F2."""
    use_confidence_check: bool = True
    """F1."""
    use_kv_cache: bool = True
    """F3."""


class OnlineConfig(Section, frozen=True):
    """The gate's thresholds follow the traffic, to keep one of two targets; both null: they do not."""

    target_cloud_rate: OpenShare | None = None
    """Share of answer tokens that the cloud computes or verifies."""
    target_quality: OpenShare | None = None
    """Share of answers that are the cloud's own, token for token."""
    rate: Annotated[float, Meta(gt=0, le=4)] = 0.1
    """Log-odds by which thresholds move for one answer's worth of miss."""
    explore: Share = 0.05
    """With `target_quality`: share of confident drafts that are verified all the same, to learn from them."""

    def __post_init__(self) -> None:
        if self.target_cloud_rate is not None and self.target_quality is not None:
            raise ValueError("Has two targets: give either target_cloud_rate or target_quality")

    @property
    def enabled(self) -> bool:
        """Whether the gate learns from traffic."""
        return self.target_cloud_rate is not None or self.target_quality is not None


class InferenceConfig(Section, frozen=True):
    features: FeaturesConfig = FeaturesConfig()
    max_draft_tokens: Annotated[int, Meta(ge=1, le=128)] = 16
    """Tokens drafted per round; the cloud verifies no more than `cloud.draft_verifier.max_draft_tokens`."""
    stretch_tokens: Annotated[int, Meta(ge=1, le=128)] = 8
    """Tokens that the cloud generates by itself when F2 is off."""
    objective: Objective = Objective.LATENCY
    """Lossless answers: `latency` (most tokens a second) or `cost` (most tokens per step of the cloud)."""
    way: VerificationMode = VerificationMode.AUTO
    """Verification mode of lossless answers; `auto`: as the objective says."""
    draft_ahead: bool = True
    """Draft on while a verify is in flight."""
    fallback: bool = True
    """false: a request fails where no cloud can be used, instead of going on at the edge."""
    private_patterns: list[str] = field(default_factory=list)
    """Regular expressions; a prompt that matches one never leaves the edge, nor one that takes long to search."""
    online: OnlineConfig = OnlineConfig()


class ModelsConfig(Section, frozen=True):
    root: str = ""
    """Folder with the models, used in place of the hub; empty: hub ids are fetched from the hub. A path that does not
    exist is looked for under the root, as `local`, `owner/name` and `name`."""


class AblationConfig(Section, frozen=True):
    name: str
    """Name on the command line and in reports."""
    description: str = ""
    """One line for the report."""
    config_overrides: dict[str, Any] = field(default_factory=dict)
    """Keys of this configuration, nested."""


class ExperimentsConfig(Section, frozen=True):
    ablations: list[AblationConfig] = field(default_factory=list)
    """Ablations of your own for `ablation_experiments.py`, beside its presets."""


class LoggingConfig(Section, frozen=True):
    level: Annotated[str, Meta(pattern="^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""


class Config(Section, frozen=True):
    edge: EdgeConfig = field(default_factory=EdgeConfig)
    cloud: CloudConfig = field(default_factory=CloudConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    communication: CommunicationConfig = field(default_factory=CommunicationConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    experiments: ExperimentsConfig = field(default_factory=ExperimentsConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

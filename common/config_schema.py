"""The whole configuration: its parts, and the keys that edge, cloud and clients share.

`make docs` writes docs/CONFIG.md from the docstrings behind the keys.
"""

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from common.config_cloud import CloudConfig
from common.config_edge import EdgeConfig
from common.config_values import NO_KEY, Count, OpenShare, Positive, Seconds, Secret, Section, Share
from common.enums import CloudKind, ContinuationForm, Mode, Objective, VerificationMode

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


class PricesConfig(Section, frozen=True):
    """What a cloud costs, in any currency: the console then shows what was saved."""

    prompt: Annotated[float, Meta(ge=0)] = 0.0
    """Price of a million tokens that it reads."""
    completion: Annotated[float, Meta(ge=0)] = 0.0
    """Price of a million tokens that it writes."""
    edge_hour: Annotated[float, Meta(ge=0)] = 0.0
    """Price of an hour in which the edge drafts."""


class CloudPrices(Section, frozen=True):
    """Prices of one cloud; null: as `communication.prices`."""

    prompt: Annotated[float, Meta(ge=0)] | None = None
    """Price of a million tokens that it reads."""
    completion: Annotated[float, Meta(ge=0)] | None = None
    """Price of a million tokens that it writes."""


class CloudEntry(Section, frozen=True):
    """One cloud."""

    url: str
    """URL of the server; of kind `openai`: as OpenAI's clients take it, most often with `/v1`."""
    kind: CloudKind = CloudKind.EDGECLOUD
    """`edgecloud`: this project's; `openai`: any server with OpenAI's API. All clouds are of one kind."""
    api_key: Secret = NO_KEY
    """Key that the edge shows to it; empty: `communication.cloud_api_key`."""
    model: str = ""
    """Kind `openai`: the model's name; empty: the first that the server lists."""
    context_length: Count = 0
    """Kind `openai`: tokens of its context; 0: as the server says, no limit where it does not."""
    continuation: ContinuationForm = ContinuationForm.AUTO
    """Kind `openai`: how it goes on with the edge's answer: `text`, `message`, `none`, or as its routes show."""
    prices: CloudPrices = CloudPrices()
    """Its own prices, in place of those of `communication.prices`."""


class CommunicationConfig(Section, frozen=True):
    """F4."""

    edge_endpoint: str = "http://localhost:8080"
    """URL of the edge server, for our clients."""
    cloud_endpoint: str = "http://localhost:8081"
    """URL of the cloud server, for the edge and our clients."""
    cloud_endpoints: list[str] = field(default_factory=list)
    """URLs of more clouds with the same model; one is chosen by prompt, load and health."""
    clouds: list[CloudEntry] = field(default_factory=list)
    """The clouds, in place of the two keys above; each has a `url`, and may have other keys (below)."""
    edge_api_key: Secret = NO_KEY
    """Key that our clients show to the edge; better set as `EDGECLOUD_COMMUNICATION__EDGE_API_KEY`."""
    cloud_api_key: Secret = NO_KEY
    """Key that the edge and our clients show to the clouds."""
    http_client: HttpClientConfig = HttpClientConfig()
    breaker: BreakerConfig = BreakerConfig()
    prices: PricesConfig = PricesConfig()

    @property
    def entries(self) -> dict[str, CloudEntry]:
        """Each cloud by the path of the key that names it."""
        if self.clouds:
            return {f"communication.clouds[{i}].url": entry for i, entry in enumerate(self.clouds)}
        more = {f"communication.cloud_endpoints[{i}]": url for i, url in enumerate(self.cloud_endpoints)}
        urls = {"communication.cloud_endpoint": self.cloud_endpoint} | more
        return {key: CloudEntry(url=url) for key, url in urls.items()}

    @property
    def kind(self) -> CloudKind:
        """The kind of all clouds."""
        return next(iter(self.entries.values())).kind


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


class BudgetConfig(Section, frozen=True):
    """What a day's answers may cost, at `communication.prices`."""

    daily: Annotated[float, Meta(ge=0)] = 0.0
    """Of all tenants together, from midnight to midnight; 0: no limit."""
    when_spent: Literal["edge", "refuse"] = "edge"
    """`edge`: the edge answers alone; `refuse`: 429 until midnight for what the cloud would take part in."""
    database: str = ""
    """SQLite file that keeps the day's sums of each key over a restart, for one edge; empty: a start counts anew."""


class InferenceConfig(Section, frozen=True):
    features: FeaturesConfig = FeaturesConfig()
    mode: Mode = Mode.COLLABORATIVE
    """Mode of requests that choose none, neither by `mode` nor by their model's name."""
    aliases: dict[str, str] = field(default_factory=dict)
    """More names for models and ways to answer, for clients with a fixed model: `{"gpt-4o": "lossless"}`."""
    max_draft_tokens: Annotated[int, Meta(ge=1, le=128)] = 16
    """Tokens drafted per round; the cloud verifies no more than `cloud.draft_verifier.max_draft_tokens`."""
    stretch_tokens: Annotated[int, Meta(ge=1, le=128)] = 8
    """Tokens that the cloud generates by itself when F2 is off."""
    objective: Objective = Objective.LATENCY
    """Lossless answers: `latency` (most tokens a second) or `cost` (most tokens per step of the cloud)."""
    way: VerificationMode = VerificationMode.AUTO
    """Verification mode of lossless answers; `auto`: as the objective says. `rounds` binds gated ones, too."""
    draft_ahead: bool = True
    """Draft on while a verify is in flight."""
    lookup: bool = True
    """Draft also what followed the answer's last tokens where they occurred before: in the prompt, in the answer, in a
    request's `prediction`."""
    fallback: bool = True
    """false: a request fails where no cloud can be used, instead of going on at the edge."""
    escalate: list[Literal["fields", "tools"]] = field(default_factory=lambda: ["fields"])
    """What a cloud of kind `openai` answers as a whole: requests with `fields` that the edge does not support, or with
    `tools`."""
    private_patterns: list[str] = field(default_factory=list)
    """Regular expressions; a prompt that matches one never leaves the edge, nor one that takes long to search."""
    private_action: Literal["keep", "redact"] = "keep"
    """What becomes of what they find: `keep`: the edge answers alone; `redact`: the cloud gets placeholders, in whose
    place the answer has the words again. `(?P<EMAIL>...)` in a pattern names its placeholders: `<EMAIL_1>`."""
    private_tool_results: bool = False
    """true: a chat with a tool's result never leaves the edge."""
    online: OnlineConfig = OnlineConfig()
    budget: BudgetConfig = BudgetConfig()


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
    traces: bool = False
    """true: OpenTelemetry traces go where the variables `OTEL_*` say, by default to port 4318 of this machine."""


class Config(Section, frozen=True):
    edge: EdgeConfig = field(default_factory=EdgeConfig)
    cloud: CloudConfig = field(default_factory=CloudConfig)
    models: ModelsConfig = field(default_factory=ModelsConfig)
    communication: CommunicationConfig = field(default_factory=CommunicationConfig)
    inference: InferenceConfig = field(default_factory=InferenceConfig)
    experiments: ExperimentsConfig = field(default_factory=ExperimentsConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)

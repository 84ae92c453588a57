"""The keys of the edge server: types, ranges, defaults and meanings."""

from typing import Annotated, Literal

from msgspec import Meta, field
from msgspec.structs import asdict

from common.config_values import Count, Positive, Secret, Section, ServerConfig, Share, TurnWeight, Weight
from common.enums import ConfidenceStrategy, StateEncoding


class EdgeModelConfig(Section, frozen=True):
    path: str = "models/demo-edge.gguf"
    """GGUF file, a folder with one, or a hub id (`owner/name`, `owner/name:pattern`); empty: the edge has no model, and
    drafts only what it looks up."""
    local: str = ""
    """Name of this model's file or folder under `models.root`; empty: as the hub id."""
    pattern: str = ""
    """Chooses among several files of a folder or hub id, for example `Q4_K_M`."""
    context_length: Positive = 1024
    """Tokens, prompt and answer together."""
    kv_type: Literal["f16", "f32", "q8_0"] = "f16"
    """Type of the numbers in the KV cache; `q8_0` takes half the memory and needs flash attention."""
    kv_unified: bool = False
    """true: sequences share the KV of a common prefix; false: it is copied, and steps are faster."""
    flash_attention: bool | Literal["auto"] = "auto"  # YAML reads on and off as true and false
    """`auto`: on a GPU, and where `kv_type` needs it. `true` on a CPU is faster for short texts only."""
    gpu_layers: Annotated[int, Meta(ge=-1)] = 0
    """Layers on the GPU; -1: all."""
    threads: Count = 0
    """CPU threads that draft and write; 0: one fewer than there are cores."""
    threads_batch: Count = 0
    """CPU threads that read prompts; 0: as many as there are cores that no other process uses."""
    sequences: Annotated[int, Meta(ge=1, le=64)] = 4
    """Sequences whose KV is held at once, which is also the number of requests in one step."""


class EmbeddingsConfig(Section, frozen=True):
    """A model that turns texts into vectors, for `/v1/embeddings`."""

    path: str = ""
    """GGUF file, a folder with one, or a hub id, as `edge.model.path`; empty: the cloud is asked."""
    context_length: Positive = 512
    """Tokens of one text, and of one step of the model; more need more memory."""
    gpu_layers: Annotated[int, Meta(ge=-1)] = 0
    """Layers on the GPU; -1: all."""


class LimitsConfig(Section, frozen=True):
    """Beyond them a request is refused: 429 while the server is busy, 400 if it can never be answered."""

    max_queue: Count = 16
    """Requests that may wait for one of `edge.model.sequences`; while that does not empty, after each turn one fewer,
    down to half as many again as these. A key has its share of the places also while others hold all of them."""
    max_tokens_request: Count = 0
    """Tokens of one request, prompt and answer together; 0: as many as the context."""
    max_tokens_total: Count = 0
    """Prompt tokens of all requests that are answered or wait; a request with more is refused (400); 0: no limit."""


class KeyConfig(Section, frozen=True):
    """One API key with a weight or limits of its own; a limit that is null is that of all keys."""

    api_key: Secret
    """The key, which `edge.server.api_keys` need not name."""
    weight: TurnWeight = 1.0
    """While requests wait, its share of the turns, beside the weights of the other keys."""
    requests_per_minute: Count | None = None
    """As `edge.quotas.requests_per_minute`."""
    tokens_per_minute: Count | None = None
    """As `edge.quotas.tokens_per_minute`."""
    concurrent_requests: Count | None = None
    """As `edge.quotas.concurrent_requests`."""
    cloud_tokens_per_day: Count | None = None
    """As `edge.quotas.cloud_tokens_per_day`."""
    cost_per_day: Annotated[float, Meta(ge=0)] | None = None
    """As `edge.quotas.cost_per_day`."""


class QuotasConfig(Section, frozen=True):
    """What each API key may ask for, 0: no limit. Without keys they hold for all clients together."""

    requests_per_minute: Count = 0
    """Requests for answers, drafts and embeddings; beyond: 429 with `Retry-After`."""
    tokens_per_minute: Count = 0
    """Tokens of prompts, counted when they are admitted, and of answers, when they end; beyond: 429."""
    concurrent_requests: Count = 0
    """Requests at a time; beyond: 429."""
    cloud_tokens_per_day: Count = 0
    """Tokens that clouds read and write for the key, from midnight to midnight; then as
    `inference.budget.when_spent`."""
    cost_per_day: Annotated[float, Meta(ge=0)] = 0.0
    """What the key's answers may cost from midnight to midnight; then as `inference.budget.when_spent`."""
    keys: list[KeyConfig] = field(default_factory=list)
    """Keys with a weight or limits of their own; each has an `api_key`, and may have other keys (below)."""


class WeightsConfig(Section, frozen=True):
    """For the strategy `ensemble`: how much each of the others counts. At least one is above 0."""

    max_prob: Weight = 0.4
    """Weight of `max_prob`; 0: not used."""
    entropy: Weight = 0.3
    """Weight of `entropy`; 0: not used."""
    temperature: Weight = 0.0
    """Weight of `temperature`; 0: not used."""
    top_k_agg: Weight = 0.3
    """Weight of `top_k_agg`; 0: not used."""

    def __post_init__(self) -> None:
        if not any(asdict(self).values()):
            raise ValueError("Are all 0: an ensemble needs at least one strategy")


class ConfidenceConfig(Section, frozen=True):
    """F1."""

    strategy: ConfidenceStrategy = ConfidenceStrategy.MAX_PROB
    """How a token's confidence is read from the model's distribution."""
    threshold: Share = 0.8
    """A token below it is not confident: from there on the cloud is asked."""
    reasoning_threshold: Share | None = None
    """`threshold` of a reasoning model's thoughts, without a running product; null: thoughts are as all tokens."""
    product_threshold: Share = 0.3
    """The cloud is also asked from where the draft's running product of confidences is below it."""
    temperature: Annotated[float, Meta(gt=0)] = 1.5
    """For the strategy `temperature`: divisor of the logits."""
    top_k: Positive = 5
    """For the strategy `top_k_agg`: tokens."""
    weights: WeightsConfig = WeightsConfig()


class RouterConfig(Section, frozen=True):
    """Mode `route`: who answers a whole request, the edge or the cloud."""

    path: str = "models/demo-router.json"
    """File that `edgecloud calibrate --router` wrote, with the router's weights; empty: no mode `route`."""
    threshold: Share | None = None
    """Score of the router from which on the cloud answers; null: as its file says."""


class EdgeCacheConfig(Section, frozen=True):
    """F3 at the edge."""

    enabled: bool = True
    """false: no KV is kept between requests or rounds."""
    max_size: Positive = 1000
    """Snapshots kept, in RAM and on disk together."""
    ram_bytes: Count = 1 << 30
    """Bytes of snapshots in RAM, of prompts that no sequence holds any more; of a split model, of all answers that have
    ended: KV, hidden states, and the encoded states of the sessions that are kept with clouds; 0: none."""
    directory: str = ""
    """Folder for snapshots on disk, which outlive the server; empty: none."""
    disk_bytes: Count = 4 << 30
    """Bytes of snapshots on disk, for each model."""
    enable_compression: bool = False
    """Compress (zstd) what goes to disk."""


class BatchesConfig(Section, frozen=True):
    """`/v1/files` and `/v1/batches`."""

    directory: str = ""
    """Folder for the files and jobs of batches, which outlive the server; empty: the edge has no such routes."""
    disk_bytes: Positive = 1 << 30
    """Bytes of all files of one API key, at 4 KiB or more each."""


class EdgeSplitConfig(Section, frozen=True):
    """Mode `split`: the edge runs the first layers of one model, the cloud the others."""

    manifest: str = ""
    """Manifest that `python -m models.partition` wrote, or its folder; empty: no mode `split`."""
    thresholds: Annotated[list[Annotated[float, Meta(ge=0)]], Meta(min_length=1)] = field(default_factory=lambda: [0.8])
    """Confidence from which an exit's token is taken, one for each exit or one for all; above 1: never."""
    latency_budget_ms: Annotated[float, Meta(gt=0)] | None = None
    """Mean milliseconds a token: exits lower their thresholds to keep it; null: no budget."""
    transfer: StateEncoding = StateEncoding.FP16
    """Number format of hidden states on their way to the cloud."""
    async_upload: bool = True
    """false: hidden states go up only when the cloud is asked."""
    deadline_ms: Positive = 2000
    """Milliseconds until the last exit answers in place of the cloud; more where it has a prompt to compute."""


class EdgeConfig(Section, frozen=True):
    model: EdgeModelConfig = EdgeModelConfig()
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    server: ServerConfig = ServerConfig()
    private_keys: list[Secret] = field(default_factory=list)
    """More keys, as `edge.server.api_keys`; nothing of their requests leaves the edge. If there is one, every request
    must show a key."""
    console: bool = True
    """false: no web page for people at `/`."""
    confidence: ConfidenceConfig = ConfidenceConfig()
    router: RouterConfig = RouterConfig()
    kv_cache: EdgeCacheConfig = EdgeCacheConfig()
    limits: LimitsConfig = LimitsConfig()
    quotas: QuotasConfig = QuotasConfig()
    batches: BatchesConfig = BatchesConfig()
    split: EdgeSplitConfig = EdgeSplitConfig()

    @property
    def keys(self) -> list[Secret]:
        """All keys that the server takes."""
        of_quotas = (entry.api_key for entry in self.quotas.keys)
        return list(dict.fromkeys([*self.server.api_keys, *self.private_keys, *of_quotas]))

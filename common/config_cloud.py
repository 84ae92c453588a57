"""The keys of the cloud server: types, ranges, defaults and meanings."""

from typing import Annotated, Any, Literal

from msgspec import Meta, field

from common.config_values import Count, Positive, Seconds, Secret, Section, ServerConfig, Share, TurnWeight


class CloudModelConfig(Section, frozen=True):
    path: str = "models/demo-cloud"
    """Folder in Hugging Face form, or a hub id."""
    local: str = ""
    """Name of this model's folder under `models.root`; empty: as the hub id."""
    context_length: Positive = 1024
    """Tokens, prompt and answer together."""
    tensor_parallel_size: Positive = 1
    """GPUs that share one model."""
    gpu_memory_utilization: Annotated[float, Meta(gt=0, le=1)] = 0.9
    """Share of GPU memory for weights and KV; no effect on a CPU."""
    dtype: Literal["auto", "bfloat16", "float16", "float32", "half", "float"] = "auto"
    """As in vLLM; `auto`: the model's own; on a CPU bfloat16 if it has instructions for it and
    the weights take more than 256 MiB in float32, else float32."""


class BatchConfig(Section, frozen=True):
    """vLLM batches the waiting requests at each of its steps."""

    enabled: bool = True
    """false: one sequence at a time."""
    max_batch_size: Positive = 32
    """Sequences in one engine step."""
    timeout_ms: Count = 10
    """Milliseconds to wait for a batch to fill."""


class DraftVerifierConfig(Section, frozen=True):
    """F2 in the cloud."""

    acceptance_threshold: Share = 0.8
    """Probability from which a draft token is accepted."""
    max_draft_tokens: Positive = 16
    """Tokens: the longest draft that one verify may carry."""
    resident_sessions: Count = 8
    """Sessions whose KV stays in the engine between rounds; vLLM's `max_num_seqs` has a place for each of them."""
    resident_idle_seconds: Seconds = 10.0
    """Seconds after which such a session gives up its place."""
    batch: BatchConfig = BatchConfig()


class CloudCacheConfig(Section, frozen=True):
    """F3 in the cloud."""

    enabled: bool = True
    """false: no KV is reused between requests or rounds."""
    max_blocks: Count = 0
    """KV blocks; 0: as many as vLLM finds room for; on a CPU what all sequences can fill, within half of the free
    memory."""
    enable_prefix_caching: bool = True
    """vLLM's prefix cache as a whole."""


class CloudKeyConfig(Section, frozen=True):
    """One API key with a weight of its own."""

    api_key: Secret
    """The key, which `cloud.server.api_keys` need not name."""
    weight: TurnWeight = 1.0
    """While requests wait, its share of the engine's time, beside the weights of the other keys."""


class AdmissionConfig(Section, frozen=True):
    """What the cloud takes at once; beyond: 429 with `Retry-After`. A key has its share of both also while others hold
    all; a batch has only what is left."""

    max_requests: Positive = 128
    """Requests, those that wait included. A queue that does not empty is kept at a quarter of `batch.max_batch_size`,
    which keeps no round of an answer out that has begun."""
    max_tokens: Positive = 262144
    """Tokens of their prompts and longest answers together."""
    keys: list[CloudKeyConfig] = field(default_factory=list)
    """Keys with a weight of their own; the others have weight 1."""


class EngineConfig(Section, frozen=True):
    hang_seconds: Seconds = 4.0
    """Seconds of silence after which nothing new is taken; after three times that the engine is restarted."""


class RayConfig(Section, frozen=True):
    """What keeps several replicas running."""

    address: str = ""
    """Of a running cluster, `auto` for that of this machine; empty: one of this machine alone, which ends with the
    server."""


class CloudSplitConfig(Section, frozen=True):
    """The layer split: the cloud runs a model's last layers."""

    manifest: str = ""
    """Manifest, or folder, of a split model with its tail; empty: `GET /split` is not served."""
    session_seconds: Seconds = 600.0
    """Seconds without use, also between two turns, after which a session's hidden states and KV are forgotten."""
    session_bytes: Positive = 16 << 20
    """Bytes of hidden states that one session may hold before its tokens are asked for."""
    total_bytes: Positive = 1 << 30
    """Bytes of hidden states of all sessions; beyond, the least recently used session is evicted."""
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Any argument of `vllm serve`, for the tail's engine."""


class CloudConfig(Section, frozen=True):
    model: CloudModelConfig = CloudModelConfig()
    replicas: Positive = 1
    """Replicas of the model behind one port; more than one need Ray (`requirements-ray.txt`)."""
    ray: RayConfig = RayConfig()
    server: ServerConfig = ServerConfig(port=8081)
    admission: AdmissionConfig = AdmissionConfig()
    engine: EngineConfig = EngineConfig()
    draft_verifier: DraftVerifierConfig = DraftVerifierConfig()
    kv_cache: CloudCacheConfig = CloudCacheConfig()
    split: CloudSplitConfig = CloudSplitConfig()
    engine_args: dict[str, Any] = field(default_factory=dict)
    """Any other argument of `vllm serve`, by its name with underscores."""

    @property
    def keys(self) -> list[Secret]:
        """All keys that the server takes."""
        return list(dict.fromkeys([*self.server.api_keys, *(entry.api_key for entry in self.admission.keys)]))

    @property
    def sequences(self) -> int:
        """Sequences in one engine step."""
        batch, given = self.draft_verifier.batch, self.engine_args.get("max_num_seqs")
        return given - self.residents if isinstance(given, int) else batch.max_batch_size if batch.enabled else 1

    @property
    def residents(self) -> int:
        """Sessions that may stay in the engine between rounds: at most half of an explicit `max_num_seqs`."""
        wanted, given = self.draft_verifier.resident_sessions, self.engine_args.get("max_num_seqs")
        return min(wanted, given // 2) if isinstance(given, int) else wanted

    @property
    def vllm_args(self) -> dict[str, object]:
        """vLLM's arguments for this config; its `engine_args` override the others."""
        blocks = {"num_gpu_blocks_override": self.kv_cache.max_blocks} if self.kv_cache.max_blocks else {}
        return {
            "max_model_len": self.model.context_length,
            "tensor_parallel_size": self.model.tensor_parallel_size,
            "gpu_memory_utilization": self.model.gpu_memory_utilization,
            "dtype": self.model.dtype,
            # An idle session keeps a place: without places of their own they would leave few to those whose turn it is.
            "max_num_seqs": self.sequences + self.residents,
            "enable_prefix_caching": self.kv_cache.enabled and self.kv_cache.enable_prefix_caching,
            **blocks,
            **self.engine_args,
        }

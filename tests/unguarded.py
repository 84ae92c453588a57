"""The plugin with one guard taken out, inside vLLM's own processes: what the distribution test must notice."""

from vllm.v1.sample import rejection_sampler

from cloud import vllm_guards
from cloud.vllm_plugin import NoProposer


class UnguardedProposer(NoProposer):
    """vLLM makes the proposer in the process that samples, after the plugin has put its guards there."""

    def __init__(self, vllm_config: object) -> None:
        super().__init__(vllm_config)
        rejection_sampler.expand_batch_to_tokens = vllm_guards.unguarded_expand

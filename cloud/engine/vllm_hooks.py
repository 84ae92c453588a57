"""What this project uses of vLLM, as data: modules, names, parameters, and what each is needed for.

`vllm_source.py` checks it against vLLM's source. A test keeps every import of vLLM in this project within it.
"""

from collections.abc import Mapping
from typing import NamedTuple


class Called(NamedTuple):
    """Something that is called with these parameters: it must have them, and all its others must have defaults."""

    parameters: str


class Overridden(NamedTuple):
    """Something that is overridden or replaced: it must have exactly these parameters, beside `self`."""

    parameters: str


Hooks = Mapping[str, Mapping[str, Called | Overridden | None]]
"""Module → name, or `Class.attribute` → its parameters; None: it must exist. `a | b`: a module of either name."""

SCHEDULERS: Hooks = {  # put drafts into steps, end verify requests, feed hidden states to a tail
    "vllm.v1.core.sched.scheduler": {
        "Scheduler.schedule": Overridden("throttle_prefills"),
        "Scheduler.add_request": Overridden("request"),
        "Scheduler.update_from_output": Overridden("scheduler_output model_runner_output"),
        "Scheduler.shutdown": Overridden(""),
        "Scheduler._update_after_schedule": Overridden("scheduler_output"),
        "Scheduler._update_request_with_output": Overridden("request new_token_ids is_stale"),
        "Scheduler._update_request_as_session": Overridden("session update"),
        **dict.fromkeys(
            f"Scheduler.{name}"
            for name in (
                "requests running finished_req_ids num_lookahead_tokens num_spec_tokens max_num_scheduled_tokens "
                "max_model_len vllm_config scheduler_config structured_output_manager"
            ).split()
        ),
    },
    "vllm.v1.core.sched.output": dict.fromkeys(
        (
            "SchedulerOutput.num_scheduled_tokens SchedulerOutput.total_num_scheduled_tokens "
            "SchedulerOutput.scheduled_spec_decode_tokens SchedulerOutput.scheduled_new_reqs "
            "NewRequestData.req_id NewRequestData.prompt_token_ids"
        ).split()
    ),
    "vllm.v1.request": dict.fromkeys(
        [
            "RequestStatus.FINISHED_LENGTH_CAPPED",
            "StreamingUpdate",
            *(
                f"Request.{name}"
                for name in (
                    "request_id status sampling_params max_tokens prompt_token_ids num_prompt_tokens prompt_embeds "
                    "prompt_is_token_ids num_tokens num_output_tokens num_computed_tokens all_token_ids "
                    "output_token_ids _output_token_ids spec_token_ids prefill_stats use_structured_output "
                    "structured_output_request"
                ).split()
            ),
        ]
    ),
    "vllm.v1.worker.cpu_worker": {"CPUWorker.execute_model": Overridden("scheduler_output")},
    "vllm.v1.structured_output": {
        "StructuredOutputManager.validate_tokens": Called("request spec_tokens"),
        "GuidanceBackend": None,
    },
    "vllm.v1.structured_output.backend_guidance": {
        "GuidanceBackend.__post_init__": Overridden(""),
        "GuidanceBackend.compile_grammar": Overridden("request_type grammar_spec stop_token_ids"),
        "GuidanceBackend.ll_tokenizer": None,
        "GuidanceBackend.vocab_size": None,
        "GuidanceBackend._build_ll_tokenizer": Called("tokenizer vocab_size"),
        "GuidanceGrammar": Called("ll_matcher ll_tokenizer vocab_size"),
        "GuidanceGrammar.accept_tokens": Overridden("request_id tokens"),
        "serialize_guidance_grammar": Called("request_type grammar_spec"),
        "validate_guidance_grammar": Overridden("sampling_params tokenizer"),
    },
    "vllm.v1.structured_output.request": {"StructuredOutputRequest.grammar": None},
    "vllm.v1.structured_output.backend_types": {
        "StructuredOutputGrammar.accept_tokens": Called("request_id tokens"),
        **dict.fromkeys(f"StructuredOutputOptions.{name}" for name in "JSON JSON_OBJECT REGEX CHOICE GRAMMAR".split()),
    },
    "vllm.v1.engine": dict.fromkeys(
        "EngineCoreOutput.request_id EngineCoreOutput.new_token_ids EngineCoreOutput.kv_transfer_params "
        "EngineCoreOutputs.outputs".split()
    ),
}
WORKERS: Hooks = {  # the patches; only the V1 model runner has these
    "vllm.v1.spec_decode.custom_class_proposer": {"create_custom_proposer": None},
    "vllm.v1.worker.gpu_model_runner": {"GPUModelRunner._sample": Overridden("logits spec_decode_metadata")},
    "vllm.v1.spec_decode.metadata": {"SpecDecodeMetadata.max_spec_len": None},
    "vllm.v1.worker.gpu_input_batch": {
        "InputBatch.add_request": Overridden("request"),
        "InputBatch.device": None,
        **dict.fromkeys(
            f"CachedRequestState.{name}"
            for name in (
                "sampling_params prompt_token_ids output_token_ids num_prompt_tokens generator prompt_embeds"
            ).split()
        ),
    },
    "vllm.v1.executor.abstract": {"Executor.take_draft_token_ids": Overridden("")},
    "vllm.v1.executor.multiproc_executor": {"MultiprocExecutor.take_draft_token_ids": Overridden("")},
    "vllm.v1.executor.uniproc_executor": {"UniProcExecutor.take_draft_token_ids": Overridden("")},
    "vllm.v1.sample.rejection_sampler": {
        "expand_batch_to_tokens": Overridden("x cu_num_tokens num_tokens replace_from replace_to"),
        "apply_top_k_top_p": Called("logits k p"),
    },
    "vllm.platforms": {"current_platform": None},
}
ENGINE: Hooks = {  # starting an engine, its arguments, and what is read of it
    "vllm.envs": dict.fromkeys("VLLM_USE_V2_MODEL_RUNNER VLLM_NO_USAGE_STATS VLLM_LOGGING_LEVEL".split()),
    "vllm.entrypoints.common.cli_args | vllm.entrypoints.launchers.cli_args": {"make_arg_parser": Called("parser")},
    "vllm.utils.argparse_utils": {"FlexibleArgumentParser": None},
    "vllm.engine.arg_utils": {
        "AsyncEngineArgs.from_cli_args": Called("args"),
        **dict.fromkeys(
            f"AsyncEngineArgs.{name}"
            for name in (
                "model served_model_name scheduler_cls worker_extension_cls speculative_config async_scheduling "
                "enable_prompt_embeds enable_prefix_caching skip_tokenizer_init disable_log_stats use_tqdm_on_load "
                "block_size max_num_seqs max_num_batched_tokens enforce_eager max_model_len tensor_parallel_size "
                "gpu_memory_utilization dtype num_gpu_blocks_override kv_cache_memory_bytes kv_events_config "
                "structured_outputs_config otlp_traces_endpoint"
            ).split()
        ),
    },
    "vllm.config": dict.fromkeys(
        "VllmConfig.num_lookahead_tokens VllmConfig.model_config VllmConfig.cache_config VllmConfig.scheduler_config "
        "ModelConfig.max_model_len ModelConfig.get_vocab_size ModelConfig.get_hidden_size CacheConfig.block_size "
        "ModelConfig.try_get_generation_config ModelConfig.get_sliding_window CacheConfig.num_gpu_blocks "
        "SchedulerConfig.max_num_seqs SchedulerConfig.max_num_batched_tokens".split()
    )
    | {"KVEventsConfig": Called("enable_kv_cache_events publisher endpoint replay_endpoint")},
    "vllm.v1.engine.async_llm": {
        "AsyncLLM.from_engine_args": Called("engine_args"),
        "AsyncLLM.generate": Called("prompt sampling_params request_id trace_headers"),
        "AsyncLLM.shutdown": Called(""),
        "AsyncLLM.check_health": Called(""),
        "AsyncLLM.get_tokenizer": Called(""),
        "AsyncLLM.get_supported_tasks": Called(""),
        "AsyncLLM.get_kv_event_sources": Called(""),
        **dict.fromkeys(
            "AsyncLLM.output_handler AsyncLLM.output_processor AsyncLLM.engine_core AsyncLLM.model_config "
            "AsyncLLM.vllm_config AsyncLLM.renderer AsyncLLM.observability_config".split()
        ),
    },
    "vllm.renderers.base": {"BaseRenderer._executor": None, "_SwappableExecutor._inner": None},
    "vllm.v1.engine.output_processor": {"OutputProcessor.propagate_error": Called("e")},
    "vllm.v1.engine.core_client": {
        "AsyncMPClient.is_sleeping_async": Called(""),
        **dict.fromkeys("AsyncMPClient.resources BackgroundResources.ctx BackgroundResources.engine_manager".split()),
    },
    "vllm.v1.engine.utils": {"CoreEngineProcManager.processes": None},
    "vllm.v1.engine.exceptions": {"EngineDeadError": None, "EngineGenerateError": None},
    "vllm.exceptions": dict.fromkeys("VLLMError VLLMClientError VLLMServerError VLLMValidationError".split()),
    "vllm.v1.metrics.reader": {"get_metrics_snapshot": Called(""), "Counter.value": None, "Gauge.value": None},
    "vllm.tokenizers": {"TokenizerLike.encode": None, "TokenizerLike.decode": None, "TokenizerLike.eos_token_id": None},
    "vllm.distributed.kv_events": dict.fromkeys(
        "KVEventBatch.ts KVEventBatch.events BlockStored.block_hashes BlockStored.parent_block_hash "
        "BlockStored.token_ids BlockStored.block_size BlockStored.lora_name BlockStored.medium BlockStored.extra_keys "
        "BlockStored.group_idx BlockRemoved.block_hashes BlockRemoved.medium BlockRemoved.group_idx "
        "AllBlocksCleared".split()
    ),
}
REQUESTS: Hooks = {  # what is asked, and what comes back
    "vllm.sampling_params": {
        "SamplingParams": Called(
            "temperature top_p top_k min_p seed presence_penalty frequency_penalty repetition_penalty logit_bias "
            "structured_outputs stop stop_token_ids logprobs max_tokens extra_args skip_reading_prefix_cache "
            "ignore_eos min_tokens detokenize output_kind skip_clone"
        ),
        "StructuredOutputsParams": Called("json regex choice grammar"),
        "StructuredOutputsParams.json_object": None,
        "SamplingType.RANDOM_SEED": None,
        "RequestOutputKind.DELTA": None,
        "RequestOutputKind.FINAL_ONLY": None,
    },
    "vllm.engine.protocol": {"StreamingInput": Called("prompt sampling_params")},
    "vllm.inputs.engine": {"tokens_input": Called("prompt_token_ids cache_salt")},
    "vllm.logprobs": {"Logprob.logprob": None, "Logprob.rank": None},
    "vllm.outputs": {
        "RequestOutput.add": Called("next_output aggregate"),
        **dict.fromkeys(
            "RequestOutput.outputs RequestOutput.finished RequestOutput.kv_transfer_params CompletionOutput.token_ids "
            "RequestOutput.num_cached_tokens CompletionOutput.finish_reason CompletionOutput.logprobs".split()
        ),
    },
}
SERVING: Hooks = {  # vLLM's own OpenAI API behind the routes
    "vllm.entrypoints.launchers.api_server.app_state": {
        "init_app_state": Called("engine_client state args supported_tasks")
    },
    "vllm.entrypoints.openai.chat_completion.protocol": {
        "ChatCompletionRequest.extract_structured_outputs": Called("")
    },
    "vllm.entrypoints.openai.completion.protocol": {"CompletionRequest.extract_structured_outputs": Called("")},
    "vllm.entrypoints.openai.chat_completion.serving": {
        "OpenAIServingChat.create_chat_completion": Called("request raw_request"),
        "OpenAIServingChat.chat_template": None,
    },
    "vllm.entrypoints.openai.completion.serving": {
        "OpenAIServingCompletion.create_completion": Called("request raw_request")
    },
    "vllm.entrypoints.openai.responses.protocol": {
        "ResponsesRequest.extract_structured_outputs": Called(""),
        "ResponsesResponse": None,
        "StreamingResponsesResponse": None,
    },
    "vllm.entrypoints.openai.responses.serving": {
        "OpenAIServingResponses.create_responses": Called("request raw_request")
    },
    "vllm.entrypoints.anthropic.protocol": {
        "AnthropicMessagesRequest.output_config": None,
        **dict.fromkeys(
            "AnthropicMessagesResponse AnthropicStreamEvent AnthropicCountTokensRequest "
            "AnthropicCountTokensResponse".split()
        ),
    },
    "vllm.entrypoints.anthropic.serving": {
        "AnthropicServingMessages.create_messages": Called("request raw_request"),
        "AnthropicServingMessages.count_tokens": Called("request raw_request"),
    },
    "vllm.entrypoints.openai.models.serving": {"OpenAIServingModels.show_available_models": Called("")},
    "vllm.entrypoints.serve.tokenize.serving": {
        "ServingTokenization.create_tokenize": Called("request raw_request"),
        "ServingTokenization.get_tokenizer_info": Called(""),
        "ServingTokenization.create_detokenize": Called("request raw_request"),
    },
    "vllm.entrypoints.serve.tokenize.protocol": {"TokenizeRequest": None, "DetokenizeRequest": None},
    "vllm.entrypoints.serve.engine.protocol": {"ErrorResponse.error": None, "ModelList": None},
    "vllm.entrypoints.serve.exception_handling.error_response": {"create_error_response": Called("message")},
}
BENCHMARKS: Hooks = {  # `vllm serve` and `vllm bench serve` as peers
    "vllm.entrypoints.launchers.api_server.entry": {"main": None},
    "vllm.benchmarks.serve": {"add_cli_args": Called("parser"), "main": Called("args")},
}
HOOKS: Hooks = {**SCHEDULERS, **WORKERS, **ENGINE, **REQUESTS, **SERVING, **BENCHMARKS}

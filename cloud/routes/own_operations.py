"""What the routes of the cloud that are not vLLM's take and give, for the API document."""

from common.protocol import split_frames, stream_frames
from common.protocol.openai_replies import TokenizerNames
from common.protocol.openapi import ANY_OBJECT, Operation
from common.protocol.vocabulary import TokenizerFile, VocabularyInfo
from common.types import VerifyBatchRequest, VerifyBatchResponse, VerifyRequest, VerifyResponse

REFUSED_PATHS = ("/v1/embeddings", "/v1/rerank", "/v1/score")
"""Answered with 404: a model that generates text pools nothing."""
OWN = (
    *(Operation("post", path, "Refused here (404)", request=ANY_OBJECT, response=ANY_OBJECT) for path in REFUSED_PATHS),
    Operation("post", "/verify", "Verifies a draft", request=VerifyRequest, response=VerifyResponse),
    Operation("post", "/verify/batch", "Verifies drafts", request=VerifyBatchRequest, response=VerifyBatchResponse),
    Operation("get", "/tokenizer", "The vocabulary's fingerprint and size", response=VocabularyInfo),
    Operation("get", "/tokenizer_info", "Special tokens and the chat template", response=TokenizerNames),
    Operation("get", "/tokenizer/file", "The tokenizer and the chat template", response=TokenizerFile),
    Operation(
        "get",
        "/stream",
        "Streams an answer and takes drafts",
        frames=stream_frames.ClientFrame | stream_frames.ServerFrame,
    ),
    Operation("get", "/split", "Computes the last layers", frames=split_frames.EdgeFrame | split_frames.CloudFrame),
)

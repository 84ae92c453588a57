"""What each route of the edge takes and gives, for its OpenAPI document."""

from common.protocol import openai, openai_replies, tokenization
from common.protocol.content.embeddings import EmbeddingsReply, EmbeddingsRequest
from common.protocol.openai_responses import ChatChunk
from common.protocol.openapi import ANY_OBJECT, Operation
from common.protocol.vocabulary import VocabularyInfo
from common.types import DraftRequest, DraftResponse

OPERATIONS = (
    Operation(
        "post",
        "/v1/chat/completions",
        "Answers a chat",
        request=openai.ChatRequest,
        response=openai_replies.ChatCompletion,
        event=ChatChunk,
    ),
    Operation(
        "post",
        "/v1/completions",
        "Continues a text",
        request=openai.CompletionRequest,
        response=openai_replies.TextCompletion,
        event=openai_replies.TextCompletion,
    ),
    Operation("post", "/v1/embeddings", "Texts as vectors", request=EmbeddingsRequest, response=EmbeddingsReply),
    Operation("post", "/v1/rerank", "Ranks texts, if the cloud can", request=ANY_OBJECT, response=ANY_OBJECT),
    Operation("post", "/v1/score", "Compares texts, if the cloud can", request=ANY_OBJECT, response=ANY_OBJECT),
    Operation("get", "/v1/models", "The models that requests can name", response=openai_replies.ModelList),
    Operation("get", "/v1/models/{model}", "One of them", response=openai_replies.ModelCard),
    Operation("post", "/draft", "Drafts tokens", request=DraftRequest, response=DraftResponse),
    Operation(
        "post",
        "/tokenize",
        "A text or a chat as token ids",
        request=tokenization.TokenizeRequest,
        response=tokenization.TokenizeReply,
    ),
    Operation(
        "post",
        "/detokenize",
        "Token ids as text",
        request=tokenization.DetokenizeRequest,
        response=tokenization.DetokenizeReply,
    ),
    Operation("get", "/tokenizer", "The vocabulary's fingerprint and size", response=VocabularyInfo),
    Operation("get", "/tokenizer_info", "Special tokens and the chat template", response=openai_replies.TokenizerNames),
)

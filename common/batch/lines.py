"""The lines of a batch in OpenAI's form: one request, and one result."""

from dataclasses import dataclass

import msgspec
import xxhash
from msgspec import UNSET, Raw, Struct, UnsetType

from common.errors import RequestError
from common.http.error_replies import ErrorReply
from common.protocol import codec

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
ROUTES = (CHAT, TEXT, "/v1/responses", "/v1/embeddings")
"""What a line may ask."""


@dataclass(frozen=True, slots=True)
class BatchLine:
    """One request. `index` counts the input's lines from 0, without blank ones."""

    index: int
    custom_id: str
    url: str
    body: bytes

    @property
    def key(self) -> int:
        """A digest of all that is asked, which tells this line's result from any other's."""
        text = b"\n".join((self.custom_id.encode(errors="surrogatepass"), self.url.encode(), self.body))
        return xxhash.xxh3_64_intdigest(text)


class _Written(Struct):
    """A line as it is written: OpenAI's fields, or a body alone."""

    custom_id: str = ""
    method: str = "POST"
    url: str = ""
    body: Raw | UnsetType = UNSET
    messages: Raw | UnsetType = UNSET
    prompt: Raw | UnsetType = UNSET
    stream: bool | None = None


class _Body(Struct):
    """The field of a body that a batch has to look at."""

    stream: bool | None = None


def parse(data: bytes, index: int, number: int) -> BatchLine:
    """The request of one line, the `number`th of its file; raises RequestError that names the wrong field.

    A line that is a body of chat or text completions alone is named after its number.
    """
    line = codec.decode(data, _Written)
    if line.body is UNSET:
        return _plain(line, data, index, number)
    if not line.custom_id:
        raise RequestError("is missing or empty", param="custom_id")
    if not line.url:
        raise RequestError("is missing or empty", param="url")
    if line.method != "POST":
        raise RequestError("must be POST", param="method")
    if line.url not in ROUTES:
        raise RequestError(f"must be one of {', '.join(ROUTES)}", param="url")
    _refuse_stream(codec.decode(bytes(line.body), _Body).stream, "body.stream")
    return BatchLine(index, line.custom_id, line.url, bytes(line.body))


def _plain(line: _Written, data: bytes, index: int, number: int) -> BatchLine:
    if (line.messages is UNSET) == (line.prompt is UNSET):
        raise RequestError("give custom_id, url and body, or a body alone with either messages or prompt", param="body")
    _refuse_stream(line.stream, "stream")
    return BatchLine(index, f"line-{number}", TEXT if line.messages is UNSET else CHAT, data.strip())


def _refuse_stream(stream: bool | None, param: str) -> None:
    if stream:
        raise RequestError("a batch has no streams", param=param)


class BatchReply(Struct):
    """A server's reply to one line: of any status."""

    status_code: int
    request_id: str
    body: Raw

    @property
    def refusal(self) -> str:
        """Why the line was refused, in words; empty if the reply does not say. How long from now it is, is left out."""
        try:
            message = msgspec.json.decode(self.body, type=ErrorReply).error.message
        except msgspec.DecodeError:
            return ""
        return message.partition(": try again in ")[0]


class BatchFailure(Struct):
    """Why a line has no reply."""

    code: str
    message: str


class BatchResult(Struct, kw_only=True):
    """What came of one line, as it is written to the output: a reply, or why there is none."""

    id: str
    custom_id: str
    response: BatchReply | None = None
    error: BatchFailure | None = None

    @property
    def answered(self) -> bool:
        return self.response is not None and self.response.status_code < 300


PREFIX = "batch_req_"
"""Of each result's id, before its line's key."""


def result_of(line: BatchLine, reply: BatchReply | None, failure: BatchFailure | None = None) -> BatchResult:
    return BatchResult(id=f"{PREFIX}{line.key:016x}", custom_id=line.custom_id, response=reply, error=failure)


def is_final(status: int) -> bool:
    """Whether a resumed batch keeps a reply with this status, and does not ask its line again.

    An answer is kept, and a refusal of what the line itself asks; not one that blames the key, the load or a server.
    """
    return status < 300 or (400 <= status < 500 and status not in (401, 403, 408, 429))


def compact(body: bytes) -> Raw:
    """A reply's body on one line; raises msgspec.DecodeError if it is no JSON."""
    return Raw(msgspec.json.format(body, indent=-1))

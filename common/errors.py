"""Every error that this project raises on purpose, and the HTTP status of each.

FrameworkError
├── ConfigError             a wrong config key, type or value; ends the program at start
├── StartError              a model or port that is not available; ends the program at start
├── RequestError       400  the request itself is wrong
│   ├── ContextLengthError  the prompt does not fit the model's context
│   ├── UnsupportedError     a field that the edge does not support; a cloud may
│   ├── GrammarError         a grammar that cannot be enforced, or does not allow the answer so far
│   ├── AuthenticationError  401  no API key, or an unknown one
│   ├── ForbiddenError 403  a web page, or a name of this machine, that this server does not serve
│   ├── NotFoundError  404  no such model or route
│   ├── SnapshotError       a KV snapshot that is damaged, of another model, or not a snapshot
│   ├── FileInUse      409  a batch that has not ended reads the file
│   ├── PrefixUnknown  409  the cloud does not hold the prefix that a verify names
│   ├── StatesMissing  409  the cloud does not hold the hidden states that a request refers to
│   ├── ModelMismatch  409  edge and cloud have parts of different models
│   └── ForeignSession 403  a session that was opened with another API key
├── OverloadedError    429  no capacity now; try again later
│   └── RateLimitError       a limit of the request's API key, or a day's budget
├── EngineError        503  our own model does not answer
├── StoppingError      503  the server is stopping and accepts no new request
├── StorageError       507  a disk that is full, or fails
└── EndpointError      502  another server cannot be reached, or its reply is invalid
    └── VocabularyError  409  its token ids mean something else, or their meaning is unknown
"""

LONGEST_TEXT = 4000
"""Characters of an error's message or of a log line: each may quote a client's value, which may have megabytes."""


def shortened(text: str) -> str:
    """`text`, without its middle if it has more than LONGEST_TEXT characters."""
    kept = LONGEST_TEXT // 2
    return text if len(text) <= LONGEST_TEXT else f"{text[:kept]} … {text[-kept:]}"


class FrameworkError(Exception):
    """The root of all errors; `message` is one line for a person, the other attributes fill OpenAI's error object."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        self.message = shortened(message)
        self.param = None if param is None else shortened(param)
        super().__init__(self.message)


class ConfigError(FrameworkError):
    """A config file, environment variable or flag that is wrong; the message starts with the key's path."""


class StartError(FrameworkError):
    """Something a server needs at start is missing: a model file, a free port, an engine that starts."""


class RequestError(FrameworkError):
    status = 400
    type = "invalid_request_error"


class ContextLengthError(RequestError):
    code = "context_length_exceeded"


class UnsupportedError(RequestError):
    """Where a cloud takes whole requests, it is asked instead."""


class GrammarError(RequestError):
    code = "invalid_grammar"


class AuthenticationError(RequestError):
    status = 401
    code = "invalid_api_key"


class ForbiddenError(RequestError):
    status = 403
    code = "forbidden"


class NotFoundError(RequestError):
    status = 404
    code = "not_found"


class FileInUse(RequestError):
    status = 409
    code = "file_in_use"


class SnapshotError(RequestError):
    """A snapshot read from the cache is dropped then; one imported by name is refused."""

    code = "invalid_snapshot"


class PrefixUnknown(RequestError):
    status = 409
    code = "prefix_unknown"


class StatesMissing(RequestError):
    """`held`: the cloud holds the states of this many positions from the first on; only later ones must be sent."""

    status = 409
    code = "states_missing"

    def __init__(self, message: str, held: int) -> None:
        super().__init__(message)
        self.held = held


class ModelMismatch(RequestError):
    status = 409
    code = "model_mismatch"


class ForeignSession(RequestError):
    status = 403
    code = "foreign_session"


class OverloadedError(FrameworkError):
    """`retry_after`: seconds until there may be capacity again."""

    status = 429
    type = "rate_limit_error"
    code = "overloaded"

    def __init__(self, message: str, param: str | None = None, retry_after: int = 1) -> None:
        super().__init__(message, param)
        self.retry_after = retry_after


class RateLimitError(OverloadedError):
    """Others may still be served; `code` is OpenAI's."""

    code = "rate_limit_exceeded"


class EngineError(FrameworkError):
    status = 503
    code = "engine_unavailable"


class StoppingError(FrameworkError):
    status = 503
    code = "server_stopping"


class StorageError(FrameworkError):
    status = 507
    code = "storage_failed"


class EndpointError(FrameworkError):
    status = 502
    code = "endpoint_unavailable"


class VocabularyError(EndpointError):
    status = 409
    type = "invalid_request_error"
    code = "vocabulary_mismatch"

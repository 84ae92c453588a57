"""Every error this project raises on purpose, and the HTTP status each one becomes. Knows nothing of HTTP libraries.

FrameworkError
├── ConfigError             a wrong config key, type or value; ends the program at start
├── StartError              a model or port that cannot be had; ends the program at start
├── RequestError       400  the request itself is wrong
│   ├── ContextLengthError  the prompt does not fit the model's context
│   ├── AuthenticationError  401  no API key, or one that is not known here
│   ├── NotFoundError  404  no such model or route
│   ├── SnapshotError       a kept KV snapshot that is damaged, another model's, or none at all
│   ├── PrefixUnknown  409  the cloud does not hold the prefix that a verify names
│   ├── StatesMissing  409  the cloud does not hold the hidden states that a question builds on
│   ├── ModelMismatch  409  edge and cloud have pieces of different models
│   └── ForeignSession 403  a session that another API key has opened
├── OverloadedError    429  no room now; try again later
├── EngineError        503  our own model does not answer
├── StoppingError      503  the server is stopping and takes nothing new
└── EndpointError      502  another server cannot be reached, or answers nonsense
    └── VocabularyError  409  its token ids mean something else, or nobody can tell what
"""


class FrameworkError(Exception):
    """The root; `message` is one line for a person, the class attributes are OpenAI's error object."""

    status = 500
    type = "server_error"
    code: str | None = None

    def __init__(self, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class ConfigError(FrameworkError):
    """A config file, environment variable or flag that is wrong; the message starts with the key's path."""


class StartError(FrameworkError):
    """Something a server needs at start is not there: a model file, a free port, an engine that comes up."""


class RequestError(FrameworkError):
    status = 400
    type = "invalid_request_error"


class ContextLengthError(RequestError):
    code = "context_length_exceeded"


class AuthenticationError(RequestError):
    status = 401
    code = "invalid_api_key"


class NotFoundError(RequestError):
    status = 404
    code = "not_found"


class SnapshotError(RequestError):
    """Read from a cache it is dropped; imported by name it is refused."""

    code = "invalid_snapshot"


class PrefixUnknown(RequestError):
    status = 409
    code = "prefix_unknown"


class StatesMissing(RequestError):
    """`held`: how many positions, from the first on, need not be sent again."""

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
    """`retry_after` is in seconds: when there may be room again."""

    status = 429
    type = "rate_limit_error"
    code = "overloaded"

    def __init__(self, message: str, param: str | None = None, retry_after: int = 1) -> None:
        super().__init__(message, param)
        self.retry_after = retry_after


class EngineError(FrameworkError):
    status = 503
    code = "engine_unavailable"


class StoppingError(FrameworkError):
    status = 503
    code = "server_stopping"


class EndpointError(FrameworkError):
    status = 502
    code = "endpoint_unavailable"


class VocabularyError(EndpointError):
    status = 409
    type = "invalid_request_error"
    code = "vocabulary_mismatch"

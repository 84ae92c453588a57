"""The objects of OpenAI's `/v1/files` and `/v1/batches`, as they are sent and kept."""

from typing import Annotated, Literal

from msgspec import Meta, Struct, field

BatchStatus = Literal["validating", "in_progress", "finalizing", "completed", "failed", "cancelling", "cancelled"]
Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]
"""With OpenAI's bounds."""
UNFINISHED = ("validating", "in_progress", "finalizing", "cancelling")


class FileObject(Struct, kw_only=True):
    """A file that was uploaded, or that a job has written. Times are Unix times in seconds."""

    id: str
    object: Literal["file"] = "file"
    bytes: int
    created_at: int
    filename: str
    purpose: Literal["batch", "batch_output"]
    status: Literal["processed"] = "processed"


class FileList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[FileObject]
    has_more: bool = False


class DeletedFile(Struct, kw_only=True):
    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class NewJob(Struct, kw_only=True):
    """The body of POST /v1/batches."""

    input_file_id: str
    endpoint: Literal["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings"]
    completion_window: Annotated[str, Meta(max_length=16)] = "24h"
    metadata: Metadata | None = None


class JobError(Struct, kw_only=True):
    code: str
    message: str
    line: int | None = None
    param: str | None = None


class JobErrors(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[JobError]


class RequestCounts(Struct):
    """Lines of a job."""

    total: int = 0
    completed: int = 0
    failed: int = 0


class JobObject(Struct, kw_only=True):
    """A batch, OpenAI's name for a job. Times are Unix times in seconds."""

    id: str
    object: Literal["batch"] = "batch"
    endpoint: str
    input_file_id: str
    completion_window: str
    status: BatchStatus = "validating"
    created_at: int
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: JobErrors | None = None
    request_counts: RequestCounts = field(default_factory=RequestCounts)
    private: bool = False
    """Nothing of it leaves the edge: so it was made, and so it stays if its key is private no more."""
    waits_until: int | None = None
    """While its key has reached a limit, in progress: when lines are asked again."""
    waits_because: str | None = None
    """Which limit that is."""
    metadata: dict[str, str] | None = None


class JobList(Struct, kw_only=True):
    object: Literal["list"] = "list"
    data: list[JobObject]
    first_id: str | None = None
    last_id: str | None = None
    has_more: bool = False

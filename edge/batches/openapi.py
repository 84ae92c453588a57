"""What the routes of batches take and give, for the edge's OpenAPI document."""

from common.protocol.openapi import Operation
from edge.batches.objects import DeletedFile, FileList, FileObject, JobList, JobObject, NewJob

FORM = {
    "type": "object",
    "properties": {"purpose": {"const": "batch"}, "file": {"type": "string", "format": "binary"}},
    "required": ["purpose", "file"],
}
OPERATIONS = (
    Operation(
        "post",
        "/v1/files",
        "Uploads the requests of a batch",
        request=FORM,
        upload="multipart/form-data",
        response=FileObject,
    ),
    Operation("get", "/v1/files", "Your files", response=FileList),
    Operation("get", "/v1/files/{id}", "One of them", response=FileObject),
    Operation("delete", "/v1/files/{id}", "Deletes it", response=DeletedFile),
    Operation("get", "/v1/files/{id}/content", "Its content", content="application/octet-stream"),
    Operation("post", "/v1/batches", "Starts a batch", request=NewJob, response=JobObject),
    Operation("get", "/v1/batches", "Your batches", response=JobList),
    Operation("get", "/v1/batches/{id}", "One of them", response=JobObject),
    Operation("post", "/v1/batches/{id}/cancel", "Ends it", response=JobObject),
)

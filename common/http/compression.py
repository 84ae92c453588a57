"""Compresses the bodies of messages with zstd, and takes only what tells its size before."""

import zstandard
from aiohttp import web

from common.errors import RequestError

COMPRESS_MIN_BYTES = 1024
"""Smaller bodies are not compressed. Measured on token ids of our corpus: from here on zstd shrinks a MessagePack body
by a third to a half and a JSON body by two thirds, in 20 microseconds on both sides together."""
COMPRESS_LEVEL = 1
"""zstd level; level 3 saves 4 % more and takes twice as long."""


def compressed(body: bytes) -> bytes:
    return zstandard.compress(body, COMPRESS_LEVEL)


def decompressed(body: bytes, limit: int) -> bytes:
    """A zstd frame's content, never longer than the size it declares; 415 without a size, 413 above the `limit`.

    Without a size a few bytes could expand to gigabytes.
    """
    try:
        size = zstandard.frame_content_size(body)
        if size < 0:
            raise web.HTTPUnsupportedMediaType(reason="a zstd body must declare its size")
        if size > limit:
            raise web.HTTPRequestEntityTooLarge(limit)
        return zstandard.ZstdDecompressor().decompress(body, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise RequestError("the body is not valid zstd") from error

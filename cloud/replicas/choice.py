"""Chooses the replica of a request from plain values: what each one holds of the prompt, and how busy each one is."""

from array import array
from collections.abc import Mapping, Sequence

import xxhash

MAX_LOAD_FACTOR = 1.25
"""A replica takes up to this many times the mean load; what is beyond goes to another one, which then has it, too."""
WORTHWHILE = 0.5
"""The least share of a prompt for whose sake a replica is preferred. What nearly all prompts begin with is less, and
would send all of them to the first replica that has read it."""
SPREAD_TOKENS = 64
"""Prompts with the same first tokens, this many, meet on one replica where nothing else decides."""


def choose(
    loads: Mapping[str, int], token_ids: Sequence[int] = (), held: Mapping[str, int] = {}, kept: str | None = None
) -> str:
    """The name of the replica for a request; `loads` has the requests in flight of each usable one (at least one).

    `kept`, the replica of the request's session, stays if it is usable. Else, among replicas below their share of the
    load, the one that has most of `token_ids` in its KV cache (`held`, in tokens), or the least busy one.
    """
    if kept in loads:
        return str(kept)
    limit = MAX_LOAD_FACTOR * (sum(loads.values()) + 1) / len(loads)
    prefix = array("q", token_ids[:SPREAD_TOKENS]).tobytes()

    def merit(name: str) -> tuple[int, int, int]:
        tokens = held.get(name, 0)
        worth = tokens if token_ids and tokens >= WORTHWHILE * len(token_ids) else 0
        return worth, -loads[name], xxhash.xxh3_64_intdigest(name.encode() + b"\0" + prefix)

    return max((name for name, load in loads.items() if load < limit), key=merit)

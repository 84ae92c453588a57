"""F3 on the edge: which known beginning of a prompt to bring back, and what to keep. Knows neither files nor llama.cpp.

A prompt's beginning is looked for where it costs least: in the sequence itself, in another live one (shared, not
copied), then among the kept snapshots in RAM and on disk. What nobody uses leaves a unified KV when the next comes.
"""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, Protocol

from common.errors import NotFoundError
from common.protocol.prefix_hash import common_prefix
from edge.kv.radix_tree import TokenTrie
from edge.kv.snapshot_format import Snapshot
from edge.kv.snapshot_store import SnapshotStore

WORTHWHILE = 16
"""Tokens that a snapshot must save: computing fewer is as quick as looking for them."""
SHARE_OF_COMPUTING = 0.25
"""What bringing back one token from a snapshot costs, of computing it, at the most."""


class SequenceMemory(Protocol):
    """What the cache needs of edge.llama.Llama; called in the engine's thread."""

    held: list[list[int]]
    unified: bool
    """Whether a step reads the cells of all sequences."""

    @property
    def fingerprint(self) -> str: ...
    def rewind(self, sequence: int, length: int) -> int: ...
    def copy(self, source: int, target: int, length: int) -> None: ...
    def snapshot(self, sequence: int) -> bytes: ...
    def load_snapshot(self, sequence: int, data: bytes, token_ids: list[int]) -> bool: ...


class CachedPrompt(NamedTuple):
    """A prompt with the ids it was tokenized to, and the tokens that were left for its answer."""

    prompt: str
    token_ids: list[int]
    available_tokens: int


class LlamaCppKVCache:
    """The engine's prefix store: live sequences, then snapshots in RAM, then on disk.

    Budgets are in bytes; `max_size` is the number of snapshots, and of prompts, kept at most; `directory` None means
    no disk tier. What is restored is checked first; what fails the check is dropped and computed again.
    `restore`, `release`, `evicted` and `export` belong to the engine's thread, the rest to any.
    """

    def __init__(
        self,
        max_size: int = 1000,
        ram_bytes: int = 1 << 30,
        disk_bytes: int = 4 << 30,
        directory: str | Path | None = None,
        enable_compression: bool = False,
    ) -> None:
        folder = Path(directory) if directory else None
        self._store = SnapshotStore(ram_bytes, disk_bytes, folder, max_size, enable_compression)
        self._live: TokenTrie[int] = TokenTrie()
        self._filed: dict[int, list[int]] = {}
        """The tokens under which each sequence stands in the trie: promised by `restore`, held since `release`."""
        self._idle: set[int] = set()
        """Sequences that were released and not asked for since."""
        self._max_size = max_size
        self._prompts: OrderedDict[str, CachedPrompt] = OrderedDict()
        self._counters = Counter[str](hits=0, misses=0, tokens_reused=0, live_hits=0, ram_hits=0, disk_hits=0)

    def restore(self, llama: SequenceMemory, sequence: int, token_ids: Sequence[int]) -> int:
        """Makes `sequence` hold the longest beginning of `token_ids` to be had, and no more; returns its length.

        What it held before and nobody else holds is kept as a snapshot first, if it is worth one.
        """
        wanted = list(token_ids)
        self._store.open(llama.fingerprint)
        self._idle.discard(sequence)
        source, live = self._longest_live(llama, sequence, wanted)
        own = common_prefix(llama.held[sequence], wanted)
        snapshot, tier = self._better_snapshot(wanted, live)
        stays = own if source == sequence and snapshot is None else 0
        if len(llama.held[sequence]) - stays >= WORTHWHILE:
            self._keep(llama, sequence)
        if snapshot and llama.load_snapshot(sequence, snapshot.state, snapshot.token_ids):
            llama.rewind(sequence, common_prefix(snapshot.token_ids, wanted))
        else:
            tier = "live_hits"
            llama.copy(source, sequence, live)
        self._file(sequence, wanted)
        self._clear_idle(llama)
        return self._counted(len(llama.held[sequence]), tier)

    def release(self, llama: SequenceMemory, sequence: int) -> None:
        """From now on others find what `sequence` holds, its answer too."""
        self._file(sequence, list(llama.held[sequence]))
        self._idle.add(sequence)

    def evicted(self, llama: SequenceMemory, sequence: int) -> None:
        """Keeps a snapshot of what `sequence` holds, if nobody else holds it; called before it is lost."""
        self._store.open(llama.fingerprint)
        self._idle.discard(sequence)
        self._keep(llama, sequence)
        self._file(sequence, [])

    def close(self, llama: SequenceMemory | None = None) -> None:
        """Writes what is still to be written to the disk tier, and what `llama` holds; no call follows."""
        if llama is not None and self._store.outlives:
            for sequence in range(len(llama.held)):
                self.evicted(llama, sequence)
                self._store.flush()
        self._store.close()

    def stats(self) -> dict[str, int]:
        """Requests that found a beginning (`hits`, by where) and that did not, tokens not computed again, sizes."""
        live = sum(map(len, list(self._filed.values())))
        return dict(self._counters) | {"live_tokens": live} | self._store.stats()

    def export(self, name: str, token_ids: Sequence[int], llama: SequenceMemory | None = None) -> int:
        """Writes what is kept of the longest beginning of `token_ids` to a file of the cache folder.

        With `llama` live sequences count too. Returns the tokens in it, which may go on beyond that beginning.
        Raises RequestError for a name that is none, NotFoundError if nothing is kept.
        """
        wanted = list(token_ids)
        shared, kept = self._store.find(wanted)
        snapshot = self._store.load(kept) if kept else None
        if llama is not None:
            live, sequence = max((common_prefix(held, wanted), at) for at, held in enumerate(llama.held))
            if live > (shared if snapshot else 0):
                self._store.open(llama.fingerprint)
                snapshot = Snapshot(list(llama.held[sequence]), llama.snapshot(sequence))
        if snapshot is None:
            raise NotFoundError("nothing is kept of these tokens", param="token_ids")
        self._store.export(name, snapshot)
        return len(snapshot.token_ids)

    def import_(self, name: str) -> int:
        """Takes an exported snapshot in; returns its length in tokens. Raises RequestError in one line."""
        return self._store.import_(name)

    def flush(self) -> None:
        """Waits until the disk tier has all it is to have."""
        self._store.flush()

    def set_cache(self, prompt: str, token_ids: Sequence[int], available_tokens: int) -> None:
        """Notes how a prompt was tokenized; the KV itself comes and goes with the engine's sequences."""
        self._prompts[prompt] = CachedPrompt(prompt, list(token_ids), available_tokens)
        self._prompts.move_to_end(prompt)
        while len(self._prompts) > self._max_size:
            self._prompts.popitem(last=False)

    def get_cache(self, prompt: str) -> CachedPrompt | None:
        """What `set_cache` noted of exactly this prompt, unless newer ones displaced it."""
        if prompt in self._prompts:
            self._prompts.move_to_end(prompt)
        return self._prompts.get(prompt)

    def _longest_live(self, llama: SequenceMemory, sequence: int, wanted: list[int]) -> tuple[int, int]:
        """The sequence that shares most of `wanted`, itself if none shares more, and how much it really holds."""
        _, promising = self._live.longest(wanted)
        lengths = {each: common_prefix(llama.held[each], wanted) for each in (sequence, *promising)}
        source = max(lengths, key=lengths.__getitem__)
        return source, lengths[source]

    def _better_snapshot(self, wanted: list[int], live: int) -> tuple[Snapshot | None, str]:
        """A kept snapshot that saves enough over `live` tokens, and the counter of the tier it comes from."""
        shared, kept = self._store.find(wanted)
        saved = shared - live
        if kept is None or saved < WORTHWHILE or saved < SHARE_OF_COMPUTING * len(kept.token_ids):
            return None, ""
        tier = "ram_hits" if kept.in_memory else "disk_hits"
        return self._store.load(kept), tier

    def _keep(self, llama: SequenceMemory, sequence: int) -> bool:
        """Whether what `sequence` holds is to be had elsewhere: it was, or a snapshot of it is kept from now on."""
        held = list(llama.held[sequence])
        if len(held) < WORTHWHILE:
            return False
        if self._store.holds(held) or self._is_held_elsewhere(llama, sequence, held):
            return True
        return self._store.keeps and self._store.keep(held, llama.snapshot(sequence))

    def _clear_idle(self, llama: SequenceMemory) -> None:
        """Moves what nobody uses now out of llama.cpp, if each step reads every cell there, whosever it is."""
        for sequence in self._idle if llama.unified else ():
            if self._keep(llama, sequence):
                llama.rewind(sequence, 0)
                self._file(sequence, [])
        self._idle.clear()

    def _is_held_elsewhere(self, llama: SequenceMemory, sequence: int, held: list[int]) -> bool:
        _, holders = self._live.longest(held)
        return any(each != sequence and common_prefix(llama.held[each], held) == len(held) for each in holders)

    def _file(self, sequence: int, token_ids: list[int]) -> None:
        if sequence in self._filed:
            self._live.remove(self._filed[sequence], sequence)
        self._filed[sequence] = token_ids
        self._live.add(token_ids, sequence)

    def _counted(self, length: int, tier: str) -> int:
        self._counters["tokens_reused"] += length
        self._counters.update(("hits", tier) if length else ("misses",))
        return length


class AblatedKVCache:
    """F3 off: keeps nothing, finds nothing."""

    def restore(self, llama: SequenceMemory, sequence: int, token_ids: Sequence[int]) -> int:
        return llama.rewind(sequence, 0)

    def release(self, llama: SequenceMemory, sequence: int) -> None:
        llama.rewind(sequence, 0)

    def evicted(self, llama: SequenceMemory, sequence: int) -> None:
        return

    def close(self, llama: SequenceMemory | None = None) -> None:
        return

    def stats(self) -> dict[str, int]:
        return {}

    def set_cache(self, prompt: str, token_ids: Sequence[int], available_tokens: int) -> None:
        return

    def get_cache(self, prompt: str) -> None:
        return

    def export(self, name: str, token_ids: Sequence[int], llama: SequenceMemory | None = None) -> int:
        raise NotFoundError("nothing is kept: the cache is off")

    def import_(self, name: str) -> int:
        raise NotFoundError("nothing is kept: the cache is off")

"""The edge's prefix cache (F3): where prefixes are found, what is kept within the budgets, what is never loaded."""

import os
import random
import shutil
import threading
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path

import pytest

from common.errors import NotFoundError, RequestError, SnapshotError, StartError
from common.protocol.prefix_hash import common_prefix
from edge.kv import snapshot_store
from edge.kv.radix_tree import RadixTree
from edge.kv.snapshot_folder import SnapshotFolder
from edge.kv.snapshot_format import HEADER_SIZE, digest, seal
from edge.kv.snapshot_store import MAX_WAITING
from edge.kv_cache import MIN_TOKENS, AblatedKVCache, LlamaCppKVCache

PER_TOKEN = 100
"""Bytes of state per token in the fake."""


class FakeLlama:
    """What the cache needs of `edge.llama.model.Llama`; the KV of a token is its id, repeated 25 times."""

    def __init__(self, sequences: int = 3, fingerprint: str = "fake") -> None:
        self.held: list[list[int]] = [[] for _ in range(sequences)]
        self.owners = [""] * sequences
        self.fingerprint = fingerprint
        self.loaded: list[bytes] = []
        self.unified = True
        self.divisible = True

    def reusable(self, sequence: int, length: int) -> int:
        return length

    def rewind(self, sequence: int, length: int) -> int:
        del self.held[sequence][length:]
        return len(self.held[sequence])

    def copy(self, source: int, target: int, length: int) -> None:
        self.held[target] = self.held[source][:length]

    def snapshot(self, sequence: int) -> bytes:
        return b"".join(token.to_bytes(4, "little") * (PER_TOKEN // 4) for token in self.held[sequence])

    def load_snapshot(self, sequence: int, data: bytes, token_ids: list[int]) -> bool:
        self.loaded.append(data)
        self.held[sequence] = list(token_ids)
        assert self.snapshot(sequence) == data, "the state of other tokens was loaded"
        return True

    def serve(self, cache: LlamaCppKVCache | AblatedKVCache, sequence: int, tokens: list[int], tenant: str = "") -> int:
        """One request from lease to release; returns how many of its tokens needed no computing."""
        restored = cache.restore(self, sequence, tokens, tenant)
        assert self.held[sequence] == tokens[:restored]
        self.held[sequence] = list(tokens)
        cache.release(self, sequence)
        if isinstance(cache, LlamaCppKVCache):
            cache.flush()
        return restored


def prompt(number: int, length: int = 100) -> list[int]:
    return [number * 1000 + at for at in range(length)]


def sealed_size(length: int) -> int:
    return HEADER_SIZE + (4 + PER_TOKEN) * length + 32


@pytest.fixture
def llama() -> FakeLlama:
    return FakeLlama()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[..., LlamaCppKVCache]]:
    """Creates caches and closes them after the test; `disk=True` uses the test's folder."""
    made: list[LlamaCppKVCache] = []

    def cache(disk: bool = False, **settings: int) -> LlamaCppKVCache:
        made.append(LlamaCppKVCache(directory=tmp_path / "cache" if disk else None, **settings))
        return made[-1]

    yield cache
    for each in made:
        each.close()


def files(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache").glob("*/*.kv"))


# The tree


def test_the_tree_finds_what_a_linear_search_finds() -> None:
    source = random.Random(3)
    for _ in range(200):
        tree: RadixTree[int] = RadixTree()
        filed: dict[int, list[int]] = {}
        for number in range(source.randrange(12)):
            filed[number] = [source.randrange(2) for _ in range(source.randrange(7))]
            tree.add(filed[number], number)
        for number in source.sample(sorted(filed), len(filed) // 3):
            tree.remove(filed.pop(number), number)
        wanted = [source.randrange(2) for _ in range(source.randrange(7))]
        shares = {number: common_prefix(tokens, wanted) for number, tokens in filed.items()}
        best = max(shares.values(), default=0)
        length, values = tree.longest(wanted)
        assert length == best
        assert sorted(values) == [number for number, share in sorted(shares.items()) if share == best > 0]
        prefixes = [number for number, tokens in sorted(filed.items()) if tokens == wanted[: len(tokens)]]
        assert sorted(tree.prefixes_of(wanted)) == prefixes


def test_an_emptied_tree_is_like_a_new_one() -> None:
    tree: RadixTree[str] = RadixTree()
    for tokens in ([1, 2, 3], [1, 2], [1, 2, 4, 5], []):
        tree.add(tokens, "x")
    for tokens in ([1, 2], [1, 2, 4, 5], [], [1, 2, 3]):
        tree.remove(tokens, "x")
    assert tree._root.children == {}
    with pytest.raises(KeyError):
        tree.remove([1], "x")


# Live sequences


def test_the_next_turn_of_a_conversation_reuses_the_one_before(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama
) -> None:
    cache, turn = make(), prompt(1)
    assert llama.serve(cache, 0, turn) == 0
    assert llama.serve(cache, 0, turn + prompt(2)) == len(turn)
    stats = cache.stats()
    assert (stats["hits"], stats["live_hits"], stats["misses"], stats["tokens_reused"]) == (1, 1, 1, len(turn))
    assert stats["ram_entries"] == 0, "nothing was overwritten, so no snapshot was needed"


def test_a_prefix_is_shared_with_a_sequence_in_use(make: Callable[..., LlamaCppKVCache], llama: FakeLlama) -> None:
    cache, shared = make(), prompt(1)
    cache.restore(llama, 0, shared + prompt(2))
    llama.held[0] = shared[:60]  # as far as its prefill is now
    assert cache.restore(llama, 1, shared + prompt(3)) == 60
    assert llama.loaded == []


def test_an_answer_is_found_after_its_release_only(make: Callable[..., LlamaCppKVCache], llama: FakeLlama) -> None:
    cache, asked, answer = make(), prompt(1), prompt(2)
    cache.restore(llama, 0, asked)
    llama.held[0] = asked + answer
    cache.release(llama, 0)
    assert cache.restore(llama, 1, asked + answer + prompt(3)) == len(asked + answer)


def test_idle_sequences_leave_a_unified_kv_when_another_request_comes(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama
) -> None:
    cache = make()
    llama.serve(cache, 0, prompt(1))
    cache.save(llama, 1)
    llama.held[1] = prompt(2)  # in use by a request without reuse
    assert llama.held[0] == prompt(1), "it stays for its next turn until another request comes"
    assert cache.restore(llama, 2, prompt(3)) == 0
    assert llama.held[:2] == [[], prompt(2)]
    assert cache.restore(llama, 0, prompt(1) + prompt(4)) == 100


def test_idle_sequences_stay_if_each_has_its_own_kv(make: Callable[..., LlamaCppKVCache], llama: FakeLlama) -> None:
    cache, llama.unified = make(), False
    llama.serve(cache, 0, prompt(1))
    cache.restore(llama, 2, prompt(3))
    assert llama.held[0] == prompt(1) and cache.stats()["ram_entries"] == 0


def test_an_idle_sequence_stays_if_no_snapshot_can_be_kept(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama
) -> None:
    cache = make(ram_bytes=0)
    llama.serve(cache, 0, prompt(1))
    cache.restore(llama, 2, prompt(3))
    assert cache.restore(llama, 0, prompt(1) + prompt(4)) == 100


def test_a_snapshot_that_waits_to_be_sealed_can_be_restored(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, gate = make(), threading.Event()
    monkeypatch.setattr(snapshot_store, "seal", lambda *args: gate.wait(60) and seal(*args))
    llama.held[0] = prompt(1)
    cache.save(llama, 0)
    llama.rewind(0, 0)
    assert cache.restore(llama, 1, prompt(1)) == 100
    gate.set()
    cache.flush()
    assert cache.stats()["ram_bytes"] == sealed_size(100)


def test_under_random_load_what_is_restored_is_always_a_prefix_of_the_request(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama
) -> None:
    cache, source = (
        make(disk=True, ram_bytes=sealed_size(300), disk_bytes=sealed_size(900), max_size=8),
        random.Random(5),
    )
    parts = [prompt(number, 40) for number in range(5)]
    for _ in range(600):
        chosen = source.choices(parts, k=source.randint(1, 6))
        wanted = list(chain.from_iterable(chosen))[: source.randint(1, 200)]
        sequence = source.randrange(3)
        llama.serve(cache, sequence, wanted)  # checks the restored prefix
        llama.rewind(sequence, source.randint(0, 250))
        if source.random() < 0.2:
            cache.save(llama, source.randrange(3))
        stats = cache.stats()
        assert stats["disk_bytes"] <= sealed_size(900) and stats["ram_entries"] <= 8 and stats["disk_entries"] <= 8
    stats = cache.stats()
    assert stats["ram_bytes"] <= sealed_size(300)
    assert min(stats["ram_hits"], stats["disk_hits"], stats["live_hits"], stats["evictions"]) > 0
    assert stats["dropped"] == 0


# Tiers


def displaced(cache: LlamaCppKVCache, llama: FakeLlama, *prompts: list[int]) -> None:
    """Serves each prompt in sequence 0, where the next one displaces it; the last is too short for a snapshot."""
    for tokens in (*prompts, prompt(99, MIN_TOKENS - 1)):
        llama.serve(cache, 0, tokens)


def test_displaced_tokens_come_back_from_ram(make: Callable[..., LlamaCppKVCache], llama: FakeLlama) -> None:
    cache = make()
    displaced(cache, llama, prompt(1))
    assert cache.stats()["ram_bytes"] == sealed_size(100)
    assert llama.serve(cache, 1, prompt(1) + prompt(2)) == 100
    assert cache.stats()["ram_hits"] == 1


def test_no_snapshot_is_kept_of_what_another_sequence_holds(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama
) -> None:
    cache = make()
    llama.serve(cache, 0, prompt(1))
    llama.serve(cache, 1, prompt(1) + prompt(2))
    displaced(cache, llama)
    assert cache.stats()["ram_bytes"] == sealed_size(200)


@pytest.mark.parametrize("compress", [False, True], ids=["plain", "zstd"])
def test_snapshots_beyond_the_ram_budget_come_back_from_disk(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama, tmp_path: Path, compress: bool
) -> None:
    cache = make(disk=True, ram_bytes=0, enable_compression=compress)
    displaced(cache, llama, prompt(1))
    stats = cache.stats()
    (file,) = files(tmp_path)
    assert (file.stat().st_size < sealed_size(100)) == compress
    assert stats["ram_bytes"] == 0 and stats["disk_bytes"] == file.stat().st_size
    assert llama.serve(cache, 1, prompt(1) + prompt(2)) == 100
    assert cache.stats()["disk_hits"] == 1


def test_the_disk_tier_outlives_the_process(make: Callable[..., LlamaCppKVCache], tmp_path: Path) -> None:
    first, llama = make(disk=True), FakeLlama()
    displaced(first, llama, prompt(1), prompt(2))
    again = make(disk=True)
    assert FakeLlama().serve(again, 0, prompt(1)) == 100
    assert again.stats()["disk_hits"] == 1


def test_live_sequences_are_written_to_disk_when_the_engine_stops(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama, tmp_path: Path
) -> None:
    first = LlamaCppKVCache(directory=tmp_path / "cache")
    for sequence in range(3):
        llama.serve(first, sequence, prompt(sequence))
    first.close(llama)
    again = make(disk=True)
    assert [FakeLlama().serve(again, 0, prompt(number)) for number in range(3)] == [100, 100, 100]


def test_one_folder_serves_two_models_and_each_finds_its_own(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama
) -> None:
    first = make(disk=True)
    displaced(first, llama, prompt(1))
    assert FakeLlama(fingerprint="other").serve(make(disk=True), 0, prompt(1)) == 0
    assert FakeLlama().serve(make(disk=True), 0, prompt(1)) == 100


def test_the_least_recently_used_is_evicted_first(make: Callable[..., LlamaCppKVCache], llama: FakeLlama) -> None:
    cache = make(ram_bytes=2 * sealed_size(100))
    displaced(cache, llama, prompt(1), prompt(2))
    assert cache.restore(llama, 1, prompt(1)) == 100
    llama.rewind(1, 0)
    displaced(cache, llama, prompt(3))
    assert cache.stats()["evictions"] >= 1
    assert llama.serve(cache, 1, prompt(1)) == 100
    assert llama.serve(cache, 2, prompt(2)) == 0


def test_there_are_never_more_entries_than_max_size(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama, tmp_path: Path
) -> None:
    cache = make(disk=True, max_size=3)
    for number in range(6):
        displaced(cache, llama, prompt(number))
        assert cache.stats()["ram_entries"] <= 3 and len(files(tmp_path)) <= 3
    assert cache.stats()["evictions"] > 0


def test_a_snapshot_larger_than_every_budget_is_not_kept(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama
) -> None:
    cache = make(ram_bytes=1000)
    displaced(cache, llama, prompt(1))
    assert cache.stats()["ram_entries"] == 0 and cache.stats()["evictions"] == 0


def test_a_longer_snapshot_replaces_its_prefix_unless_that_is_much_shorter(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama
) -> None:
    cache = make()
    for length in (100, 110, 500):
        llama.held[0] = prompt(1, length)
        cache.save(llama, 0)
        cache.flush()
    assert cache.stats()["ram_bytes"] == sealed_size(110) + sealed_size(500)


def test_a_snapshot_much_longer_than_the_prefix_it_saves_is_not_restored(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama
) -> None:
    cache = make()
    displaced(cache, llama, prompt(1, 900))
    assert llama.serve(cache, 1, prompt(1, 900)[:50] + prompt(2)) == 0
    assert llama.loaded == []


def test_saving_never_waits_for_the_disk_and_drops_snapshots_beyond_the_queue(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache, gate, threads = make(disk=True), threading.Event(), set()
    write = SnapshotFolder.write

    def held_up(folder: SnapshotFolder, name: str, data: bytes) -> None:
        threads.add(threading.current_thread().name)
        gate.wait(60)
        write(folder, name, data)

    monkeypatch.setattr(SnapshotFolder, "write", held_up)
    for number in range(20):
        llama.held[0] = prompt(number)
        cache.save(llama, 0)  # returns although writing is blocked
    assert 20 - MAX_WAITING - 1 <= cache.stats()["dropped"] <= 20 - MAX_WAITING  # one may be at the gate
    gate.set()
    cache.flush()
    assert cache.stats()["disk_entries"] == 20 - cache.stats()["dropped"]
    assert threads == {"edge-kv-store"}


# Damaged, foreign and misplaced files


def spoiled(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:-1],
        lambda data: data + b"\0",
        lambda data: b"",
        lambda data: data[:HEADER_SIZE] + b"\1" + data[HEADER_SIZE + 1 :],
        lambda data: data[:-50] + bytes([data[-50] ^ 1]) + data[-49:],
        lambda data: data[:8] + b"\0" * 32 + data[40:],
    ],
    ids=["cut", "longer", "empty", "other tokens", "flipped bit", "other model"],
)
@pytest.mark.parametrize("restart", [False, True], ids=["running", "restarted"])
def test_a_damaged_file_is_dropped_and_its_tokens_are_computed_again(
    make: Callable[..., LlamaCppKVCache],
    llama: FakeLlama,
    tmp_path: Path,
    change: Callable[[bytes], bytes],
    restart: bool,
) -> None:
    cache = make(disk=True, ram_bytes=0)
    displaced(cache, llama, prompt(1))
    (file,) = files(tmp_path)
    good = file.read_bytes()
    spoiled(file, change)
    cache = make(disk=True, ram_bytes=0) if restart else cache
    assert llama.serve(cache, 1, prompt(1)) == 0
    assert (
        llama.serve(cache, 2, [prompt(1)[0] & ~255 | 1, *prompt(1)[1:]]) == 0
    )  # the tokens that "other tokens" claims
    assert llama.loaded == []
    assert cache.stats()["dropped"] == 1
    assert not file.exists() or file.read_bytes() == good


def test_a_file_copied_over_another_is_not_restored_as_the_other(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama, tmp_path: Path
) -> None:
    cache = make(disk=True, ram_bytes=0)
    displaced(cache, llama, prompt(1), prompt(2))
    one, other = files(tmp_path)
    shutil.copy(one, other)
    restored = [llama.serve(cache, 1, prompt(number)) for number in (1, 2)]
    assert sorted(restored) == [0, 100]


def test_a_flipped_bit_in_ram_is_dropped(make: Callable[..., LlamaCppKVCache], llama: FakeLlama) -> None:
    cache = make()
    displaced(cache, llama, prompt(1))
    (entry,) = cache._store._index._entries
    assert entry.data is not None
    entry.data = entry.data[:-50] + bytes([entry.data[-50] ^ 1]) + entry.data[-49:]
    assert llama.serve(cache, 1, prompt(1)) == 0
    assert cache.stats()["dropped"] == 1 and llama.loaded == []


def test_the_tokens_of_removed_files_are_computed_again(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama, tmp_path: Path
) -> None:
    cache = make(disk=True, ram_bytes=0)
    displaced(cache, llama, prompt(1))
    for file in files(tmp_path):
        file.unlink()
    assert llama.serve(cache, 1, prompt(1)) == 0


def test_a_linked_folder_is_not_used_and_costs_only_the_disk_tier(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama, tmp_path: Path
) -> None:
    cache = make(disk=True)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "cache" / digest(llama.fingerprint).hex()[:16]).symlink_to("../elsewhere")
    displaced(cache, llama, prompt(1))
    assert llama.serve(cache, 1, prompt(1)) == 100
    assert cache.stats()["ram_hits"] == 1 and cache.stats()["disk_entries"] == 0
    assert not list((tmp_path / "elsewhere").iterdir())


def test_a_folder_that_cannot_be_created_is_a_start_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StartError, match="cache folder"):
        LlamaCppKVCache(directory=tmp_path / "file")


# By name


def test_an_exported_snapshot_comes_back_by_name(make: Callable[..., LlamaCppKVCache], llama: FakeLlama) -> None:
    first = make(disk=True)
    displaced(first, llama, prompt(1))
    assert first.export("persona", prompt(1)) == 100
    llama.serve(first, 2, prompt(3))
    assert first.export("live", prompt(3), llama) == 100
    second = make(disk=True, disk_bytes=0)
    fresh = FakeLlama()
    for name, number in (("persona", 1), ("live", 3)):
        assert second.import_(name) == 100
        assert fresh.serve(second, 0, prompt(number)) == 100


@pytest.mark.parametrize("name", ["../x", "/tmp/x", "a/../../x", "", "."])
def test_a_name_that_leads_out_of_the_folder_is_refused(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama, name: str
) -> None:
    cache = make(disk=True)
    displaced(cache, llama, prompt(1))
    for use in (lambda: cache.export(name, prompt(1)), lambda: cache.import_(name)):
        with pytest.raises(RequestError, match="invalid snapshot name"):
            use()


def test_a_failed_import_or_export_names_its_reason(
    make: Callable[..., LlamaCppKVCache], llama: FakeLlama, tmp_path: Path
) -> None:
    cache = make(disk=True)
    displaced(cache, llama, prompt(1))
    cache.export("good", prompt(1))
    os.symlink("good.kv", tmp_path / "cache" / "link.kv")
    spoiled(tmp_path / "cache" / "good.kv", lambda data: data[:-1])
    with pytest.raises(NotFoundError, match="no snapshot is named 'none'"):
        cache.import_("none")
    with pytest.raises(RequestError, match="a link"):
        cache.import_("link")
    with pytest.raises(SnapshotError):
        cache.import_("good")
    with pytest.raises(NotFoundError, match="directory"):
        make().import_("good")
    with pytest.raises(NotFoundError, match="nothing is kept"):
        cache.export("x", prompt(7), llama)


def test_prompts_are_remembered_up_to_the_limit(make: Callable[..., LlamaCppKVCache]) -> None:
    cache = make(max_size=2)
    for prompt_text in ("Hello", "a", "Hello", "b"):
        cache.set_cache(prompt=prompt_text, token_ids=[100, 101], available_tokens=64)
        found = cache.get_cache("Hello")
    assert found == ("Hello", [100, 101], 64)
    assert cache.get_cache("a") is None


def test_with_the_cache_off_nothing_is_kept_or_found(llama: FakeLlama) -> None:
    cache = AblatedKVCache()
    assert [llama.serve(cache, 0, prompt(1)) for _ in range(2)] == [0, 0]
    cache.set_cache("Hello", [1], 1)
    assert cache.get_cache("Hello") is None
    assert cache.stats() == {}

"""A radix tree over token ids: finds which of many token sequences share the longest prefix with a given one."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from common.protocol.prefix_hash import common_prefix

T = TypeVar("T")


@dataclass(eq=False)
class _Node(Generic[T]):
    """The tokens between the parent and this node, and the values of the sequence that ends here."""

    label: list[int]
    values: list[T] = field(default_factory=list)
    children: dict[int, "_Node[T]"] = field(default_factory=dict)

    def below(self) -> Iterator[T]:
        """The values of this node and of all nodes below it."""
        waiting = [self]
        while waiting:
            node = waiting.pop()
            yield from node.values
            waiting += node.children.values()


class RadixTree(Generic[T]):
    """Values stored under token sequences, any number under each. Not thread-safe."""

    def __init__(self) -> None:
        self._root: _Node[T] = _Node([])

    def add(self, token_ids: list[int], value: T) -> None:
        node, depth = self._root, 0
        while depth < len(token_ids):
            child = node.children.get(token_ids[depth])
            if child is None:
                child = node.children[token_ids[depth]] = _Node(token_ids[depth:])
            else:
                shared = common_prefix(child.label, token_ids[depth : depth + len(child.label)])
                if shared < len(child.label):
                    child = node.children[token_ids[depth]] = _split(child, shared)
            node, depth = child, depth + len(child.label)
        node.values.append(value)

    def remove(self, token_ids: list[int], value: T) -> None:
        """Removes a value that `add` stored with the same arguments; raises KeyError or ValueError if there is none."""
        path, depth = [self._root], 0
        while depth < len(token_ids):
            path.append(path[-1].children[token_ids[depth]])
            depth += len(path[-1].label)
        path[-1].values.remove(value)
        while len(path) > 1 and not path[-1].values and len(path[-1].children) < 2:
            node, parent = path.pop(), path[-1]
            if node.children:
                (only,) = node.children.values()
                only.label = node.label + only.label
                parent.children[node.label[0]] = only
            else:
                del parent.children[node.label[0]]

    def prefixes_of(self, token_ids: list[int]) -> list[T]:
        """The values stored under `token_ids` or a prefix of it."""
        node, depth, found = self._root, 0, list(self._root.values)
        while depth < len(token_ids) and (child := node.children.get(token_ids[depth])):
            if child.label != token_ids[depth : depth + len(child.label)]:
                break
            node, depth = child, depth + len(child.label)
            found += node.values
        return found

    def longest(self, token_ids: list[int]) -> tuple[int, list[T]]:
        """The length of the longest prefix that any sequence shares with `token_ids`, and the values that share it."""
        node, depth = self._root, 0
        while child := node.children.get(token_ids[depth]) if depth < len(token_ids) else None:
            shared = common_prefix(child.label, token_ids[depth : depth + len(child.label)])
            node, depth = child, depth + shared
            if shared < len(child.label):
                break
        return depth, list(node.below()) if depth else []


def _split(node: _Node[T], at: int) -> _Node[T]:
    """A new node for the first `at` tokens of `node`, with `node` below it for the rest."""
    upper: _Node[T] = _Node(node.label[:at], children={node.label[at]: node})
    node.label = node.label[at:]
    return upper

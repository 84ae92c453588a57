"""What is said about a pair whose chat templates do not fit."""

import pytest

from edge.text.chat_forms import mismatch


@pytest.mark.parametrize(
    ("ours", "theirs", "one_vocabulary", "said"),
    [
        ([1, 2], [1, 2], True, ""),
        ([1, 2], [3], True, "the chat templates of edge and cloud differ"),
        ([1, 2], [3], False, ""),
        ([1, 2], [], True, "the cloud's model has no chat template"),
        ([1, 2], [], False, "the cloud's model has no chat template"),
        ([], [1, 2], True, "the edge's model has no chat template"),
        ([], [], True, ""),
        ([1, 2], None, True, ""),
        (None, [1, 2], True, ""),
    ],
)
def test_only_what_is_known_not_to_fit_is_said(
    ours: list[int] | None, theirs: list[int] | None, one_vocabulary: bool, said: str
) -> None:
    found = mismatch(ours, theirs, one_vocabulary)
    assert found.startswith(said)
    assert bool(found) == bool(said)
    assert "\n" not in found

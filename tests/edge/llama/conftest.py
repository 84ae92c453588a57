"""Random models of each kind, written once in a test run."""

from pathlib import Path

import pytest

from tests.edge.llama import random_models


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A GGUF file of each architecture in `random_models.KINDS`."""
    folder = tmp_path_factory.mktemp("random-models")
    return {kind: random_models.write(folder / f"{kind}.gguf", kind) for kind in random_models.KINDS}

"""How long the fuzzers look for faults: seconds in `make test`, MINUTES in `make fuzz`."""

import os

from hypothesis import HealthCheck, settings
from hypothesis.database import DirectoryBasedExampleDatabase

from common.files.installation import PROJECT

MINUTES = float(os.environ.get("FUZZ_MINUTES", "0"))
HTTP_SECONDS = round(60 * MINUTES / 2) or 12
"""For each of the two servers."""
FOUND = PROJECT / "logs" / "fuzz"
"""Where an input that fails is kept; one that has failed belongs into `tests/fuzz/seeds`, or into an `@example`."""


def examples(short: int) -> settings:
    """Settings for a property that tries `short` inputs in `make test`, and as many more as there are minutes."""
    return settings(
        max_examples=max(short, int(short * 4 * MINUTES)),
        deadline=None,
        database=DirectoryBasedExampleDatabase(FOUND / "examples"),
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
    )

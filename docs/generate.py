"""Writes the generated parts of the docs: python -m docs.generate [--check]

`--check` writes nothing; it ends with code 1 and one line for each file that is not up to date.
"""

import argparse
import re
import sys
from pathlib import Path

from docs.config_reference import config_reference
from docs.folder_map import PROJECT, folder_map

README = PROJECT / "README.md"
CONFIG = PROJECT / "docs" / "CONFIG.md"
BLOCK = re.compile(r"(?<=<!-- folder map: make docs -->\n).*?(?=<!-- end of folder map -->)", re.DOTALL)


def generated() -> dict[Path, str]:
    """The whole text of each file that is generated, or has a generated part."""
    return {README: with_folder_map(README.read_text()), CONFIG: config_reference()}


def with_folder_map(readme: str) -> str:
    """The README with the map as it is now between its two comments."""
    assert BLOCK.search(readme), "README.md has lost the comments around its folder map"
    return BLOCK.sub(lambda _: folder_map() + "\n", readme)


def main() -> int:
    parser = argparse.ArgumentParser(description="Write the generated parts of the docs.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is not up to date")
    check = parser.parse_args().check
    stale = {path: text for path, text in generated().items() if not path.exists() or path.read_text() != text}
    for path, text in stale.items():
        if check:
            print(f"error: {path.relative_to(PROJECT)} is not up to date: run `make docs`", file=sys.stderr)
        else:
            path.write_text(text)
            print(f"written: {path.relative_to(PROJECT)}")
    return 1 if check and stale else 0


if __name__ == "__main__":
    sys.exit(main())

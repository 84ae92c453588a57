"""Writes the generated parts of the docs: python -m docs.generate

tests/test_house.py fails where they are not up to date.
"""

import re
from pathlib import Path

from docs.api_reference import api_reference
from docs.config_reference import config_reference
from docs.folder_map import PROJECT, folder_map

README = PROJECT / "README.md"
CONFIG = PROJECT / "docs" / "CONFIG.md"
API = PROJECT / "docs" / "API.md"
BLOCK = re.compile(r"(?<=<!-- folder map: make docs -->\n).*?(?=<!-- end of folder map -->)", re.DOTALL)


def generated() -> dict[Path, str]:
    """The whole text of each file that is generated, or has a generated part."""
    return {README: with_folder_map(README.read_text()), CONFIG: config_reference(), API: api_reference()}


def with_folder_map(readme: str) -> str:
    """The README with the map as it is now between its two comments."""
    assert BLOCK.search(readme), "README.md has lost the comments around its folder map"
    return BLOCK.sub(lambda _: folder_map() + "\n", readme)


def main() -> None:
    for path, text in generated().items():
        path.write_text(text)
        print(f"written: {path.relative_to(PROJECT)}")


if __name__ == "__main__":
    main()

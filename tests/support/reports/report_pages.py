"""Renders the report of an experiment in every format, and parses the HTML."""

import copy
from collections.abc import Callable
from html.parser import HTMLParser

from markdown_it import MarkdownIt

from experiments.report import compare, html, markdown
from experiments.report.schema import ExperimentReport

VOID = {"meta", "link", "br", "hr", "img", "input"}
RENDERERS: list[Callable[[ExperimentReport], str]] = [
    html.render,
    lambda report: MarkdownIt().enable("table").render(markdown.render(report)),
    lambda report: compare.to_html(compare.compare(report, other_than(report))),
    lambda report: (
        MarkdownIt().enable("table").render(compare.to_markdown(compare.compare(report, other_than(report))))
    ),
]
"""The report and the comparison as HTML; Markdown is converted to HTML."""


def other_than(report: ExperimentReport) -> ExperimentReport:
    """A copy that differs in its seed."""
    other = copy.deepcopy(report)
    other.seed += 1
    return other


class Parsed(HTMLParser):
    """All tags with their attributes, and the text; fails if tags are not closed in order."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(page)
        self.close()
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open[-1:] != ["style"]:
            self.text += data

    def of_class(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]

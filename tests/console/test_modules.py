"""The page's own modules: Markdown with tokens, words that differ, Prometheus' text format."""

import json
from typing import Any

import pytest

from tests.console.scripted_edge import ScriptedEdge

RENDER = """async ([text, cuts]) => {
    const { MarkdownView } = await import("/console/js/markdown.js");
    const target = document.createElement("div");
    const tokens = cuts.map((start, at) => ({ start, end: cuts[at + 1] ?? text.length, source: "edge" }));
    const view = new MarkdownView(target);
    for (let end = 1; end < text.length; end += 3) view.update(text.slice(0, end), tokens.filter((t) => t.end <= end));
    view.update(text, tokens);
    const once = document.createElement("div");
    new MarkdownView(once).update(text, tokens);
    const spans = [...once.querySelectorAll(".token")].map((span) => [+span.dataset.index, span.textContent]);
    return [target.outerHTML, once.outerHTML, spans];
}"""
TEXTS = {
    "plain": "one two three",
    "emphasis": "**bold** and *soft* and ~~gone~~ `code` end",
    "list": "1. first\n2. second **b**\n   - nested\n   - [x] done\n\nafter",
    "quotation": "> said\n> over two lines\n\nthen",
    "fence": "Look:\n\n```py\nx = 1\ny = x\n```\n\ndone",
    "table": "| a | b |\n|:-:|---|\n| x | y |\n\nend",
    "link": "[b](https://b.example) b https://c.example end",
    "entities": "a &lt;b&gt; &amp; c \\* d",
    "headings": "# One\n\ntext\n\nTwo\n===\n\nend",
    "repeated": "a a a **a** a\n\na a",
}


@pytest.mark.parametrize("name", TEXTS)
async def test_each_rendered_character_belongs_to_the_token_that_wrote_it(page: Any, name: str) -> None:
    text = TEXTS[name]
    cuts = [n for n in range(len(text)) if n == 0 or text[n - 1] == " " or text[n - 1] == "\n"]
    streamed, whole, spans = await page.evaluate(RENDER, [text, cuts])
    assert streamed == whole
    ends = [*cuts[1:], len(text)]
    for index, shown in spans:
        written = text[cuts[index] : ends[index]].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&")
        assert shown.strip() in written
    order = [index for index, _ in spans]
    assert order == sorted(order)


DIFFER = """async ([text, reference]) => {
    const { differing } = await import("/console/js/diff.js");
    return differing(text, reference).map(([begin, end]) => text.slice(begin, end));
}"""


@pytest.mark.parametrize(
    ("text", "reference", "expected"),
    [
        ("a b c", "a b c", []),
        ("a x c", "a b c", ["x"]),
        ("x a b c", "a b c", ["x"]),
        ("a b", "a b c", []),
        ("", "a", []),
        ("a b.", "a b!", ["."]),
        ("a  b", "a b", []),
        ("naïve Größe", "naïve Grösse", ["Größe"]),
    ],
)
async def test_words_that_differ(page: Any, text: str, reference: str, expected: list[str]) -> None:
    assert await page.evaluate(DIFFER, [text, reference]) == expected


async def test_prometheus_text_is_read_with_its_labels(page: Any, edge: ScriptedEdge) -> None:
    text = '# HELP a b\n# TYPE a counter\na{x="1",y="q\\"\\\\,}"} 2\na{x="2",y=""} 3.5\nb 1e3\nbroken\n'
    sums = await page.evaluate(
        """async (text) => {
            const { parseMetrics } = await import("/console/js/metrics.js");
            const read = parseMetrics(text);
            return [read.sum("a"), read.sum("a", { y: 'q"\\\\,}' }), read.sum("b"), read.sum("c")];
        }""",
        text,
    )
    assert json.dumps(sums) == "[5.5, 2, 1000, 0]"

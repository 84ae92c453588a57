"""The Grafana dashboard asks for metrics, labels and values that the servers have."""

import json
import re
from collections import defaultdict
from typing import Any

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from common.files.installation import PROJECT
from tests.conftest import Servers

DASHBOARD = PROJECT / "deploy" / "grafana" / "dashboard.json"
SELECTOR = re.compile(r"([a-z]\w*(?::\w+)?)\{([^}]*)\}")
MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"')
BY_PROMETHEUS = {"job", "instance"}
Samples = dict[str, list[dict[str, str]]]


def dashboard() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(DASHBOARD.read_text())
    return read


def queries() -> list[tuple[str, str]]:
    return [(panel["title"], target["expr"]) for panel in dashboard()["panels"] for target in panel.get("targets", ())]


async def samples(url: str) -> Samples:
    async with aiohttp.ClientSession() as http, http.get(f"{url}/metrics") as answer:
        families = text_string_to_metric_families(await answer.text())
    found: Samples = defaultdict(list)
    for family in families:
        for sample in family.samples:
            found[sample.name].append(sample.labels)
    return found


async def test_every_metric_and_label_of_a_panel_is_exposed_by_its_server(servers: Servers) -> None:
    body = {"messages": [{"role": "user", "content": "What is AI?"}], "max_tokens": 8}
    await servers.edge.post("/v1/chat/completions", body, dict)
    exposed = {"$edge": await samples(servers.edge_url), "$cloud": await samples(servers.cloud_url)}
    assert len(queries()) > 20
    for title, query in queries():
        selectors = SELECTOR.findall(query)
        assert selectors and len(re.findall(r"\b(?:edgecloud_\w+|vllm:\w+)", query)) == len(selectors), title
        for name, text in selectors:
            wanted = {label: (kind, value) for label, kind, value in MATCHER.findall(text)}
            known = exposed[wanted.pop("job")[1]][name]
            assert known, f"{title}: no server exposes {name}"
            for label, (kind, value) in wanted.items():
                pattern = value if kind == "=~" else re.escape(value)
                assert any(re.fullmatch(pattern, labels.get(label, "")) for labels in known), f"{title}: {label}"
            grouped = {label.strip() for labels in re.findall(r"by \(([^)]*)\)", query) for label in labels.split(",")}
            assert grouped <= set().union(*known) | BY_PROMETHEUS, f"{title}: {grouped}"


def test_each_variable_lists_the_jobs_of_a_metric_and_each_panel_has_a_place_of_its_own() -> None:
    read = dashboard()
    variables = {one["name"]: one for one in read["templating"]["list"]}
    used = set(re.findall(r"\$(\w+|\{\w+\})", DASHBOARD.read_text())) - {"__rate_interval", "__all"}
    assert {name.strip("{}") for name in used} == set(variables)
    places = [panel["gridPos"] for panel in read["panels"]]
    cells = [(x, y) for p in places for x in range(p["x"], p["x"] + p["w"]) for y in range(p["y"], p["y"] + p["h"])]
    assert len(cells) == len(set(cells)) and max(x for x, _ in cells) < 24
    assert len({panel["id"] for panel in read["panels"]}) == len(places)

"""The supervisor of the servers: in which order they stop."""

import json
from pathlib import Path
from typing import Any

from cli.demo import free_ports
from cli.supervisor import ServerProcess, Supervisor

EDGE = """
import os, signal, sys, time, urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

port, cloud, result = int(sys.argv[1]), sys.argv[2], sys.argv[3]

class Ready(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

def drain(*_):
    time.sleep(0.5)
    with open(result, "w") as file:
        file.write(str(urllib.request.urlopen(cloud + "/wait/0.2").status))
    os._exit(0)

signal.signal(signal.SIGTERM, drain)
HTTPServer(("127.0.0.1", port), Ready).serve_forever()
"""
"""A program that, told to stop, still has an answer to finish for which it asks the cloud."""


def small_server(name: str, port: int, folder: Path, **server: Any) -> ServerProcess:
    flags = [json.dumps({"server": {"port": port, **server}})]
    return ServerProcess(name, "tests.support.small_server", f"http://127.0.0.1:{port}", flags, folder / f"{name}.log")


async def test_an_edge_can_ask_its_cloud_until_it_has_drained(tmp_path: Path) -> None:
    (tmp_path / "edge.py").write_text(EDGE)
    cloud_port, edge_port = free_ports(2)
    cloud, result = small_server("cloud", cloud_port, tmp_path), tmp_path / "result"
    flags = [str(edge_port), cloud.url, str(result)]
    edge = ServerProcess(
        "edge", str(tmp_path / "edge.py"), f"http://127.0.0.1:{edge_port}", flags, tmp_path / "edge.log"
    )
    async with Supervisor([cloud, edge], lambda _: None).running():
        pass
    assert result.read_text() == "200"

"""Compares the output throughput of the cloud server's /v1/completions with `vllm serve`, by vLLM's own benchmark.

python -m benchmarks.serve_throughput [--repeats 3]

Both servers have the same model and engine arguments, run all the time and are measured in turn: in each repeat first
with 1 client, then with 16. The table shows the median output tokens per second over the repeats; the ratio is the
cloud server's throughput over `vllm serve`'s: above 1 the cloud server is faster.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.progress import track
from rich.table import Table

from cli import terminal
from cli.args import config_parser
from cli.demo import free_ports
from cli.supervisor import PROJECT
from cloud.engine.args import CPU_DEFAULTS, words

MODEL = PROJECT / "models" / "demo-cloud"
ARGS: dict[str, object] = {
    **CPU_DEFAULTS,
    "kv_cache_memory_bytes": 1 << 30,
    "dtype": "float32",
    "max_model_len": 1024,
}
REQUESTS = {1: 24, 16: 192}
"""Requests of one run, by the number of concurrent clients."""
PROMPT, ANSWER = 64, 128
"""Tokens of each prompt and each answer."""

# The console script of vLLM's CPU build looks for a package with another name; these scripts call the same functions.
VLLM_SERVE = """
import sys
from vllm.entrypoints.launchers.api_server.entry import main
if __name__ == "__main__":
    main()
"""
VLLM_BENCH = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
if __name__ == "__main__":
    parser = FlexibleArgumentParser()
    add_cli_args(parser)
    main(parser.parse_args())
"""


@contextmanager
def running(command: list[str], log: Path) -> Iterator[None]:
    """Runs a server in its own process group; ends it with everything that it started."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, start_new_session=True, cwd=PROJECT)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def ours(port: int) -> list[str]:
    flags = [f"cloud.engine_args={json.dumps(ARGS)}", "cloud.draft_verifier.batch.max_batch_size=64"]
    sets = [part for flag in flags for part in ("--set", flag)]
    return [sys.executable, "start_cloud.py", "--host", "127.0.0.1", "--port", str(port), *sets]


def theirs(port: int, script: Path) -> list[str]:
    args = {"model": str(MODEL), "served_model_name": MODEL.name, "host": "127.0.0.1", "port": port, **ARGS}
    return [sys.executable, str(script), *(word for key, value in args.items() for word in words(key, value))]


def tokens_per_second(port: int, clients: int, script: Path, folder: Path) -> float:
    """Output tokens per second in one run of vLLM's benchmark."""
    options: dict[str, object] = {
        "backend": "openai",
        "base_url": f"http://127.0.0.1:{port}",
        "model": MODEL.name,
        "tokenizer": str(MODEL),
        "dataset_name": "random",
        "random_input_len": PROMPT,
        "random_output_len": ANSWER,
        "num_prompts": REQUESTS[clients],
        "max_concurrency": clients,
        "ready_check_timeout_sec": 180,
        "temperature": 0,
        "result_dir": str(folder),
        "result_filename": "result.json",
    }
    flags = [word for key, value in options.items() for word in words(key, value)]
    flags += ["--ignore-eos", "--save-result", "--disable-tqdm"]
    subprocess.run([sys.executable, str(script), *flags], check=True, capture_output=True)
    result = json.loads((folder / "result.json").read_text())
    if result["completed"] != REQUESTS[clients]:
        raise SystemExit(f"error: {result['completed']} of {REQUESTS[clients]} requests succeeded")
    return float(result["output_throughput"])


def table(measured: dict[tuple[int, str], list[float]]) -> Table:
    result = Table("clients", "cloud server", "vllm serve", "ratio", title="Output tokens per second")
    for clients in REQUESTS:
        mine, other = (statistics.median(measured[clients, name]) for name in ("ours", "theirs"))
        result.add_row(str(clients), f"{mine:.0f}", f"{other:.0f}", f"{mine / other:.3f}")
    return result


def main() -> int:
    parser = config_parser("Compare the throughput of the cloud server with vllm serve.")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each server and number of clients (default 3)")
    repeats = parser.parse_args().repeats
    console = terminal.console()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        serve, bench = folder / "serve.py", folder / "bench.py"
        serve.write_text(VLLM_SERVE)
        bench.write_text(VLLM_BENCH)
        ports = dict(zip(("ours", "theirs"), free_ports(2), strict=True))
        stack.enter_context(running(ours(ports["ours"]), folder / "ours.log"))
        stack.enter_context(running(theirs(ports["theirs"], serve), folder / "theirs.log"))
        measured: dict[tuple[int, str], list[float]] = {}
        runs = [(clients, name) for _ in range(repeats) for clients in REQUESTS for name in ports]
        for clients, name in track(runs, "benchmark runs", console=console):
            speed = tokens_per_second(ports[name], clients, bench, folder)
            measured.setdefault((clients, name), []).append(speed)
    console.print(table(measured))
    return 0


if __name__ == "__main__":
    sys.exit(main())

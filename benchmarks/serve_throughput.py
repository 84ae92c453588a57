"""Compares the output throughput of the cloud server's /v1/completions with `vllm serve`, by vLLM's own benchmark.

python -m benchmarks.serve_throughput [--config FILE] [--set KEY=VALUE] [--requests 24] [--repeats 3]

Both servers have the same model and engine arguments, run all the time and are measured in turn: in each repeat first
with 1 client, then with 16. The table shows the median output tokens per second over the repeats; the ratio is the
cloud server's throughput over `vllm serve`'s: above 1 the cloud server is faster. Both compute in float32 unless
`--set cloud.model.dtype` says otherwise.
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

from benchmarks.setup.pair import cloud_model
from cli import terminal
from cli.args import config_parser, run_sync_program
from cli.demo import free_ports
from cli.server_process import CLOUD
from cloud.engine.args import CPU_DEFAULTS, words
from common.config_cloud import CloudModelConfig
from common.files.installation import module_environment
from models.demo import CLOUD as DEMO

CLIENTS = (1, 16)
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
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            process_group=0,
            env=module_environment(),
        )
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def requests_of(clients: int, of_one: int) -> int:
    """Requests of one run: many clients together have half as many each as one alone."""
    return of_one if clients == 1 else of_one * clients // 2


def engine_args(model: CloudModelConfig) -> dict[str, object]:
    """What both servers run vLLM with."""
    dtype = "float32" if model.dtype == "auto" else model.dtype  # vllm serve's own choice may be another
    return {**CPU_DEFAULTS, "kv_cache_memory_bytes": 1 << 30, "dtype": dtype, "max_model_len": model.context_length}


def ours(port: int, model: CloudModelConfig) -> list[str]:
    flags = [f"cloud.engine_args={json.dumps(engine_args(model))}", "cloud.draft_verifier.batch.max_batch_size=64"]
    sets = [part for flag in flags for part in ("--set", flag)]
    where = ["--model", model.path, "--host", "127.0.0.1", "--port", str(port)]
    return [sys.executable, "-P", "-m", CLOUD, *where, *sets]


def theirs(port: int, script: Path, model: CloudModelConfig) -> list[str]:
    name = Path(model.path).name
    args = {"model": model.path, "served_model_name": name, "host": "127.0.0.1", "port": port, **engine_args(model)}
    return [sys.executable, str(script), *(word for key, value in args.items() for word in words(key, value))]


def tokens_per_second(port: int, clients: int, requests: int, model: CloudModelConfig, script: Path) -> float:
    """Output tokens per second in one run of vLLM's benchmark."""
    folder = script.parent
    options: dict[str, object] = {
        "backend": "openai",
        "base_url": f"http://127.0.0.1:{port}",
        "model": Path(model.path).name,
        "tokenizer": model.path,
        "dataset_name": "random",
        "random_input_len": PROMPT,
        "random_output_len": ANSWER,
        "num_prompts": requests,
        "max_concurrency": clients,
        "ready_check_timeout_sec": 600,
        "temperature": 0,
        "result_dir": str(folder),
        "result_filename": "result.json",
    }
    flags = [word for key, value in options.items() for word in words(key, value)]
    flags += ["--ignore-eos", "--save-result", "--disable-tqdm"]
    subprocess.run([sys.executable, str(script), *flags], check=True, capture_output=True)
    result = json.loads((folder / "result.json").read_text())
    if result["completed"] != requests:
        raise SystemExit(f"error: {result['completed']} of {requests} requests succeeded")
    return float(result["output_throughput"])


def table(measured: dict[tuple[int, str], list[float]]) -> Table:
    result = Table("clients", "cloud server", "vllm serve", "ratio", title="Output tokens per second")
    for clients in CLIENTS:
        mine, other = (statistics.median(measured[clients, name]) for name in ("ours", "theirs"))
        result.add_row(str(clients), f"{mine:.0f}", f"{other:.0f}", f"{mine / other:.3f}")
    return result


def main() -> None:
    parser = config_parser("Compare the throughput of the cloud server with vllm serve.")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each server and number of clients (default 3)")
    parser.add_argument(
        "--requests",
        type=int,
        default=24,
        help="requests of a run with one client; 8 times as many with 16 (default 24)",
    )
    args, console = parser.parse_args(), terminal.console()
    model = cloud_model(args) or CloudModelConfig(path=str(DEMO), dtype="float32")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        serve, bench = folder / "serve.py", folder / "bench.py"
        serve.write_text(VLLM_SERVE)
        bench.write_text(VLLM_BENCH)
        ports = dict(zip(("ours", "theirs"), free_ports(2), strict=True))
        stack.enter_context(running(ours(ports["ours"], model), folder / "ours.log"))
        stack.enter_context(running(theirs(ports["theirs"], serve, model), folder / "theirs.log"))
        measured: dict[tuple[int, str], list[float]] = {}
        runs = [(clients, name) for _ in range(args.repeats) for clients in CLIENTS for name in ports]
        for clients, name in track(runs, "benchmark runs", console=console):
            speed = tokens_per_second(ports[name], clients, requests_of(clients, args.requests), model, bench)
            measured.setdefault((clients, name), []).append(speed)
    console.print(table(measured))


if __name__ == "__main__":
    sys.exit(run_sync_program(main))

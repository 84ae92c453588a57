"""Starts one cloud server: edgecloud cloud, or python start_cloud.py."""

import argparse
import asyncio
import sys

import uvloop

from cli.args import config_parser, load_config, run_program, set_up_logging
from cloud.engine import version
from cloud.replicas.actor import ReplicaSpec
from common.config_cloud import CloudConfig
from common.config_schema import Config
from common.errors import StartError
from common.files import model_root
from common.files.hub import check_model
from common.files.installation import CHECKOUT, install_hint
from common.http_server import listen, serve
from common.tracing.export import exported

SERVER = "cloud server"


def parser() -> argparse.ArgumentParser:
    options = config_parser("Start one cloud server (vLLM).")
    options.add_argument("--host", help="address to listen on (default: cloud.server.host)")
    options.add_argument("--port", type=int, help="TCP port; 0: any free one (default: cloud.server.port)")
    options.add_argument("--model", metavar="PATH", help="model folder or Hugging Face id (default: cloud.model.path)")
    return options


def run(args: argparse.Namespace) -> int:
    return run_program(_serve(args), uvloop.new_event_loop)  # with many streams the event loop is the bottleneck


async def _serve(args: argparse.Namespace) -> None:
    config = _config(args)
    set_up_logging(config.logging.level)
    version.check()
    spec = await asyncio.to_thread(_spec, config)
    (await listen(config.cloud.server.host, config.cloud.server.port, SERVER)).close()
    if config.cloud.replicas > 1:
        await _serve_replicas(args, config.cloud, spec)
        return
    # What is wrong is said before this import, which takes many seconds.
    from cloud.cloud_server import build_app
    from cloud.engine.engine import CloudEngine

    engine = CloudEngine(spec.model, config.cloud.draft_verifier.max_draft_tokens, spec.engine_args)
    with exported("edgecloud-cloud", config.logging.traces):
        await serve(build_app(engine, config.cloud), config.cloud.server, SERVER)


async def _serve_replicas(args: argparse.Namespace, config: CloudConfig, spec: ReplicaSpec) -> None:
    try:
        from cloud.replicas.service import serve_replicas
    except ModuleNotFoundError as error:
        hint = "pip install --no-deps -r requirements/ray.lock" if CHECKOUT else install_hint("ray")
        raise StartError(f"cloud.replicas: more than one need Ray, which is not installed: {hint}") from error
    await serve_replicas(config, spec, lambda: _spec(_config(args)), SERVER)


def _config(args: argparse.Namespace) -> Config:
    model = {"cloud__model__path": args.model, "cloud__model__local": "''" if args.model else None}
    return load_config(args, cloud__server__host=args.host, cloud__server__port=args.port, **model)


def _spec(config: Config) -> ReplicaSpec:
    """What a replica runs; raises StartError for a model that is not there."""
    path = model_root.cloud_model(config).path
    check_model(path)
    return ReplicaSpec(path, config.cloud.vllm_args, config.cloud, config.logging.level, config.logging.traces)


if __name__ == "__main__":
    sys.exit(run(parser().parse_args()))

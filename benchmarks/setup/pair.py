"""The models that a benchmark measures: those of its config, or the benchmark's own where the config has the demo's."""

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cli.args import load_config
from cli.demo import config_flags
from common import config as configs
from common.config_cloud import CloudModelConfig
from common.config_edge import EdgeModelConfig
from common.files import model_root
from edge.llama import model_file

FLOAT32 = "cloud.model.dtype=float32"
"""A cloud is measured in float32 unless the command line says otherwise."""


def edge_file(args: argparse.Namespace) -> Path | None:
    """The GGUF file of the config; None for the demo's. Blocks while it downloads; raises StartError."""
    config = load_config(args)
    if config.edge.model.path == EdgeModelConfig().path:
        return None
    model = model_root.edge_model(config)
    return model_file.resolve(model.path, model.pattern)


def cloud_model(args: argparse.Namespace) -> CloudModelConfig | None:
    """The cloud's model of the config, in float32 unless the command line says otherwise; None for the demo's."""
    config = configs.load(args.config, [FLOAT32, *args.set])
    return None if config.cloud.model.path == CloudModelConfig().path else model_root.cloud_model(config)


@contextmanager
def model_flags(
    args: argparse.Namespace, width: int = 512, layers: int = 8, context: int = 1024
) -> Iterator[list[str]]:
    """start_cloud.py's flags for the config's model or, in place of the demo's, for a random one of these sizes."""
    flags = ["--set", FLOAT32, *config_flags(args)]
    if cloud_model(args):
        yield flags
        return
    from models.random_model import random_model  # torch, which takes seconds

    with random_model(width, layers, context) as folder:
        yield [*flags, "--model", str(folder), "--set", f"cloud.model.context_length={context}"]

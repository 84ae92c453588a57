"""Fits the temperature of a GGUF model's confidence and prints the config keys to set.

    python -m models.fit_temperature [--model FILE.gguf] [--data FILE.jsonl]

Data: JSON lines of {"prompt": ..., "answer": ...} with the right answers; default: the demo models' held-out questions.
"""

import argparse
import sys
from pathlib import Path

from calibration import data
from calibration.temperature import Calibration, fit
from cli.args import run_program
from cli.terminal import console
from common.config_edge import EdgeModelConfig
from common.errors import ConfigError
from edge.llama.model import Llama
from models import heldout


def report(calibration: Calibration) -> str:
    """The figures at temperature 1, the first one, and at the best, and the lines for the config."""
    plain, best = 0, calibration.best
    nll, ece, temperature = calibration.nll, calibration.ece, calibration.temperatures[best]
    return (
        f"{calibration.tokens} tokens of held-out answers\n"
        f"  temperature                {calibration.temperatures[plain]:6.2f} -> {temperature:6.2f}\n"
        f"  negative log likelihood    {nll[plain]:6.4f} -> {nll[best]:6.4f}  nats per token\n"
        f"  expected calibration error {ece[plain]:6.4f} -> {ece[best]:6.4f}\n"
        "In the config:\n"
        '  edge.confidence.strategy: "temperature"\n'
        f"  edge.confidence.temperature: {temperature:.2f}"
    )


async def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m models.fit_temperature",
        description="Find the temperature that calibrates a model's confidence; prints the config keys to set.",
    )
    parser.add_argument("--model", metavar="FILE", default="models/demo-edge.gguf", help="GGUF file (%(default)s)")
    parser.add_argument(
        "--data",
        metavar="FILE",
        type=Path,
        help='JSON lines of {"prompt": ..., "answer": ...} (the demo models\' held-out questions)',
    )
    parser.add_argument("--context-length", type=int, default=1024, help="tokens; longer texts are cut (%(default)s)")
    parser.add_argument("--gpu-layers", type=int, default=0, help="layers on the GPU; -1: all (%(default)s)")
    args = parser.parse_args()
    questions = [pair[1:] for pair in heldout.pairs()] if args.data is None else data.read_answered(args.data)
    if not questions:
        raise ConfigError(f"{args.data}: no questions")
    model = EdgeModelConfig(
        path=args.model, context_length=args.context_length, gpu_layers=args.gpu_layers, sequences=1
    )
    llama = Llama(model)
    try:
        console().print(report(await fit(llama, questions)))
    finally:
        llama.free()


if __name__ == "__main__":
    sys.exit(run_program(main()))

"""Runs two custom ablations, a stricter and a more lenient gate: python examples/custom_ablation.py

An ablation is a name and the config keys that it changes. Under experiments.ablations in config/config.yaml it is part
of every run of ablation_experiments.py, which starts and stops its own servers. Here it asks only a few questions.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))  # makes the project importable without installing it

from experiments.report import schema

OUTPUT = PROJECT / "logs" / "custom-ablation"
CONFIG = """
experiments:
  ablations:
    - name: "strict"
      description: "the edge keeps only very confident tokens"
      config_overrides:              # keys of config/config.yaml; an unknown one is an error
        edge:
          confidence:
            threshold: 0.99
    - name: "lenient"
      description: "the edge keeps almost everything"
      config_overrides:
        edge:
          confidence:
            threshold: 0.2
            product_threshold: 0.0
"""


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "ablations.yaml"
        config.write_text(CONFIG)
        # The baseline always runs too: the others are compared with it.
        command = [sys.executable, "ablation_experiments.py", "--config", str(config), "--only", "strict,lenient"]
        few = ["--questions", "12", "--repeats", "1"]
        where = ["--output", str(OUTPUT), "--resume"]  # continues an interrupted run
        code = subprocess.run([*command, *few, *where], cwd=PROJECT).returncode
    if code == 0:
        show(OUTPUT / "ablation_report.json")
    return code


def show(path: Path) -> None:
    """Prints the cloud's share from the report; its other fields: experiments/report/schema.py."""
    report = schema.read(path)
    print("\nHow much of an answer the cloud computes or verifies, with 95 % intervals over the questions:")
    for configuration in report.configurations:
        rate = configuration.measures["cloud_rate"]
        interval = f"[{rate.low:.1%}, {rate.high:.1%}]"
        print(f"  {configuration.name:<10} {rate.value:6.1%}  {interval:<16}  {configuration.description}")


if __name__ == "__main__":
    sys.exit(main())

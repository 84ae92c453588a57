"""Ablations of one's own: what do a stricter and a more lenient gate change? python examples/custom_ablation.py

Each is a name and the keys of the config that it changes. In config/config.yaml, under experiments.ablations, they are
part of every run of ablation_experiments.py. That starts and stops its own servers; here it asks a few questions only.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

PROJECT = Path(__file__).parents[1]
sys.path.insert(0, str(PROJECT))  # the project is not installed: its folder is where imports begin

from experiments.report import schema

OUTPUT = PROJECT / "logs" / "custom-ablation"
CONFIG = """
experiments:
  ablations:
    - name: "strict"
      description: "the edge keeps only what it is very sure of"
      config_overrides:              # keys of config/config.yaml; one that is not there is refused by its path
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
        # The baseline is always among them: it is what the others are compared with.
        command = [sys.executable, "ablation_experiments.py", "--config", str(config), "--only", "strict,lenient"]
        few = ["--questions", "12", "--repeats", "1"]
        where = ["--output", str(OUTPUT), "--resume"]  # a run that was broken off goes on
        code = subprocess.run([*command, *few, *where], cwd=PROJECT).returncode
    if code == 0:
        show(OUTPUT / "ablation_report.json")
    return code


def show(path: Path) -> None:
    """What the report says of the cloud's share; all that is in it: experiments/report/schema.py."""
    report = schema.read(path)
    print("\nHow much of an answer the cloud computes or verifies, with 95 % intervals over the questions:")
    for configuration in report.configurations:
        rate = configuration.measures["cloud_rate"]
        interval = f"[{rate.low:.1%}, {rate.high:.1%}]"
        print(f"  {configuration.name:<10} {rate.value:6.1%}  {interval:<16}  {configuration.description}")


if __name__ == "__main__":
    sys.exit(main())

"""What a report was made of: what was changed, where it was measured, how to measure it again. Knows no format."""

import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from experiments.report.schema import ConfigurationReport, Environment, ExperimentReport
from experiments.report.words import counted


@dataclass(frozen=True)
class Change:
    """One key that a configuration overrides; `before` is what the base config says, None where it says nothing."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        before = "" if self.before is None else f"{plain(self.before)} → "
        return f"{self.key}: {before}{plain(self.after)}"


def changes(report: ExperimentReport, configuration: ConfigurationReport) -> list[Change]:
    """What its config overrides, then what its requests say."""
    config = leaves(configuration.config_overrides)
    overridden = [Change(".".join(path), value_at(report.config, path), value) for path, value in config]
    asked = leaves(configuration.request)
    return overridden + [Change(f"request {'.'.join(path)}", None, value) for path, value in asked]


def plain(value: Any) -> str:
    """As it would stand in the config file."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of nested mappings with the keys that lead to it."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def value_at(tree: Any, path: Iterable[str]) -> Any:
    """The value at a path of keys; None where there is none."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def command(report: ExperimentReport) -> str:
    """The command line that asks the same again."""
    words = ["python", *str(report.options.get("program", "ablation_experiments.py")).split()]
    for name, value in report.options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, list):
            words += [word for one in value for word in (flag, str(one))]
        elif value is not None and value is not False and name != "program":
            words += [flag, str(value)]
    return shlex.join(words)


def described(where: Environment) -> dict[str, str]:
    return {
        "Measured": where.created,
        "Commit": where.git_commit or "outside git",
        "Machine": where.machine,
        "Processor": f"{where.cpu}, {counted(where.cpus, 'core')}",
        "Memory": f"{where.memory_gb:g} GB",
        "GPUs": ", ".join(where.gpus) or "none",
        "Python": where.python,
        **where.versions,
    }


def environment(report: ExperimentReport) -> dict[str, str]:
    network = report.network
    return {
        **described(report.environment),
        "Network": ", ".join(f"{name} {value:g}" for name, value in network.items()) if network else "as it is",
        "Seed": str(report.seed),
        "Prompts": f"SHA-256 {report.workload.prompts_sha256}",
    }


def short(commit: str) -> str:
    """As much of a commit as people write, and the "+" of one that files differed from."""
    return commit if len(commit) <= 13 else commit[:12] + commit[40:]

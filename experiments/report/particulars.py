"""Describes what a report was made from: config changes, environment, and the command that measures it again."""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from experiments.report.schema import ConfigurationReport, Environment, ExperimentReport
from experiments.report.words import counted


@dataclass(frozen=True)
class Change:
    """One key that a configuration overrides; `before`: the value in the base config, None without one."""

    key: str
    before: Any
    after: Any

    def __str__(self) -> str:
        before = "" if self.before is None else f"{plain(self.before)} → "
        return f"{self.key}: {before}{plain(self.after)}"


def changes(report: ExperimentReport, configuration: ConfigurationReport) -> list[Change]:
    """The config keys that it overrides, then the fields of its requests."""
    config = leaves(configuration.config_overrides)
    overridden = [Change(".".join(path), value_at(report.config, path), value) for path, value in config]
    asked = leaves(configuration.request)
    return overridden + [Change(f"request {'.'.join(path)}", None, value) for path, value in asked]


def plain(value: Any) -> str:
    """A value as it is written in the config file."""
    return value if isinstance(value, str) else msgspec.json.encode(value).decode()


def leaves(tree: Mapping[str, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value of nested mappings, with the path of its keys."""
    for key, value in tree.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key), value


def value_at(tree: Any, path: Iterable[str]) -> Any:
    """The value at a path of keys; None if there is none."""
    for key in path:
        tree = tree.get(key) if isinstance(tree, Mapping) else None
    return tree


def command(options: Mapping[str, Any]) -> str:
    """The command line of a report's options; `program` among them is what follows "python"."""
    words = ["python", *str(options.get("program", "ablation_experiments.py")).split()]
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            words.append(flag)
        elif isinstance(value, list):
            words += [word for one in value for word in (flag, str(one))]
        elif value is not None and value is not False and name != "program":
            words += [flag, str(value)]
    return shlex.join(words)


def without_secrets(settings: Iterable[str]) -> list[str]:
    """Settings (KEY=VALUE) with the values of API keys masked."""
    return [re.sub(r"(api_keys?\W*?[=:]).*", r"\1***", setting) for setting in settings]


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
    """The first 12 digits of a commit, and its "+" if files differed from it."""
    return commit if len(commit) <= 13 else commit[:12] + commit[40:]

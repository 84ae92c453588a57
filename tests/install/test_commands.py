"""The command edgecloud: its subcommands, their errors in one line, and the completion of shells."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from common.files.installation import module_environment
from edgecloud import commands
from edgecloud.commands import SHELLS, SUBCOMMANDS

LIGHT = [name for name in SUBCOMMANDS if name != "partition"]
"""Without that which loads torch."""


def edgecloud(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """The command as an installed one is started: from any folder."""
    command = [sys.executable, "-P", "-m", "edgecloud", *words]
    return subprocess.run(command, cwd=folder, env=module_environment(), capture_output=True, text=True, timeout=120)


def test_without_a_subcommand_all_are_listed(tmp_path: Path) -> None:
    said = edgecloud(folder=tmp_path)
    assert said.returncode == 2
    assert all(f"    {name}" in said.stdout and one.help in said.stdout for name, one in SUBCOMMANDS.items())


def test_a_subcommand_takes_its_own_flags_and_says_how_it_was_called(tmp_path: Path) -> None:
    said = edgecloud("edge", "--port", "many", folder=tmp_path)
    assert said.returncode == 2
    assert said.stderr.splitlines()[-1] == (
        "python -m edgecloud edge: error: argument --port: invalid int value: 'many'"
    )


@pytest.mark.parametrize("name", LIGHT)
def test_the_parser_of_each_subcommand_takes_its_help_flag(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        commands.root_parser([name]).parse_args([name, "--help"])
    assert ended.value.code == 0
    assert f" {name} [-h]" in " ".join(capsys.readouterr().out.split())


def test_a_question_to_nobody_is_one_line(tmp_path: Path) -> None:
    said = edgecloud("ask", "hello", "--set", "communication.edge_endpoint=http://127.0.0.1:1", folder=tmp_path)
    assert said.returncode == 1
    assert said.stderr == "error: cannot reach http://127.0.0.1:1 (Connection refused): is that server running?\n"


def test_a_package_that_is_missing_is_one_line_that_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    monkeypatch.delitem(sys.modules, "edgecloud.cloud", raising=False)
    monkeypatch.setattr(sys, "argv", ["edgecloud", "cloud", "--port", "1"])
    monkeypatch.setattr("common.files.installation.CHECKOUT", False)
    assert commands.main() == 1
    assert capsys.readouterr().err == (
        "error: cloud needs the package uvloop: install this project with its extra [cloud] (without a GPU "
        "[cloud-cpu])\n"
    )


@pytest.fixture(scope="module")
def scripts() -> dict[str, str]:
    return {shell: commands.completion(shell) for shell in SHELLS}


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (("edgecloud", "cal"), ["calibrate"]),
        (("edgecloud", "edge", "--mo"), ["--model"]),
        (("edgecloud", "ask", "--no-d"), ["--no-draft-verify"]),
        (("edgecloud", "completion", "z"), ["zsh"]),
        (("edgecloud", "serve", "--config", "min"), ["mine.yaml"]),
    ],
)
def test_bash_completes_subcommands_flags_choices_and_files(
    words: tuple[str, ...], offered: list[str], scripts: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "mine.yaml").touch()
    (tmp_path / "completion.sh").write_text(scripts["bash"])
    line = " ".join(words)
    asked = (
        "source completion.sh; name=$(complete -p edgecloud | sed 's/.*-F \\([^ ]*\\).*/\\1/');"
        f"COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; COMP_LINE='{line}'; COMP_POINT=${{#COMP_LINE}};"
        f"$name edgecloud {words[-1]} {words[-2]}; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    )
    said = subprocess.run(["bash", "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert said.stdout.split() == offered, said.stderr


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_can_read_their_completions(shell: str, scripts: dict[str, str]) -> None:
    assert all(name in scripts[shell] for name in SUBCOMMANDS)
    if shutil.which(shell) is None:
        pytest.skip(f"there is no {shell}")
    subprocess.run([shell, "-n"], input=scripts[shell], text=True, check=True)


@pytest.mark.skipif(shutil.which("fish") is None, reason="there is no fish")
def test_fish_completes_subcommands_and_flags(scripts: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "edgecloud.fish").write_text(scripts["fish"])
    for line, offered in (("edgecloud cal", "calibrate"), ("edgecloud edge --mo", "--model")):
        asked = f"source edgecloud.fish; complete -C '{line}'"
        said = subprocess.run(["fish", "-c", asked], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert offered in [one.partition("\t")[0] for one in said.stdout.splitlines()]

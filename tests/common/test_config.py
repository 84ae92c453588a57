"""The configuration: precedence of its sources, its reference, and error messages for wrong keys."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from common import config, config_schema
from common.config_values import Section
from common.errors import ConfigError
from docs.config_reference import config_reference, field_docstrings


def test_the_committed_file_has_the_defaults() -> None:
    committed = config.load(environment={})
    assert committed.experiments.ablations
    for section in ("edge", "cloud", "models", "communication", "inference", "logging"):
        assert getattr(committed, section) == getattr(config_schema.Config(), section)


def test_the_committed_file_is_short_and_says_what_each_key_is() -> None:
    leaves = [line for line in config.DEFAULT_PATH.read_text().splitlines() if re.match(r" +\w+: +\S", line)]
    settings = leaves[
        : next(at for at, line in enumerate(leaves) if "config_overrides" in line or "description" in line)
    ]
    assert 25 <= len(settings) <= 40
    assert [line for line in settings if "  # " not in line] == []


def test_every_key_has_a_meaning_in_the_reference() -> None:
    reference = config_reference()
    for path, section in _sections(config_schema.Config(), ""):
        meanings = field_docstrings(type(section))
        for name in section.__struct_fields__:
            if not isinstance(getattr(section, name), Section):
                assert meanings.get(name), f"{path}.{name} has no docstring"
                assert f"## {path}\n" in reference and f"| `{name}` |" in reference


def test_deprecated_keys_exist_and_are_marked_in_the_reference() -> None:
    keys = {
        f"{path}.{name}"
        for path, section in _sections(config_schema.Config(), "")
        for name in section.__struct_fields__
    }
    assert set(config_schema.DEPRECATED) <= keys
    assert config_reference().count("Deprecated: ") == len(config_schema.DEPRECATED)


def _sections(section: Section, path: str) -> Iterator[tuple[str, Section]]:
    yield path, section
    for name in section.__struct_fields__:
        below = getattr(section, name)
        if isinstance(below, Section):
            yield from _sections(below, f"{path}.{name}".lstrip("."))


def test_environment_overrides_the_file_and_flags_override_the_environment(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("edge: {server: {port: 1, host: file}, model: {threads: 1}}")
    environment = {"EDGECLOUD_EDGE__SERVER__PORT": "2", "EDGECLOUD_EDGE__MODEL__THREADS": "2", "OTHER": "x"}
    loaded = config.load(path, ["edge.server.port=3"], environment)
    assert (loaded.edge.server.host, loaded.edge.model.threads, loaded.edge.server.port) == ("file", 2, 3)


def test_a_variable_may_name_a_file_that_holds_the_value_as_secrets_are_mounted(tmp_path: Path) -> None:
    keys, key = tmp_path / "keys", tmp_path / "key"
    keys.write_text("- one\n- two\n")
    key.write_text("three\n")
    environment = {
        "EDGECLOUD_EDGE__SERVER__API_KEYS_FILE": str(keys),
        "EDGECLOUD_COMMUNICATION__CLOUD_API_KEY_FILE": str(key),
    }
    loaded = config.load(environment=environment)
    assert [one.reveal() for one in loaded.edge.server.api_keys] == ["one", "two"]
    assert loaded.communication.cloud_api_key.reveal() == "three"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"EDGECLOUD_EDGE__SERVER__API_KEYS_FILE: .*keys cannot be read \(No such file or directory\)"),
        (b"\xff\xfe", r"EDGECLOUD_EDGE__SERVER__API_KEYS_FILE: .*keys cannot be read \(not UTF-8\)"),
        (b"", "edge.server.api_keys: expected `array`, got `null`"),  # an empty file must not open the server to all
        (b"secret", "edge.server.api_keys: expected `array`, got `str`"),
    ],
)
def test_a_file_without_keys_is_an_error_that_shows_no_secret(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / "keys").write_bytes(content)
    with pytest.raises(ConfigError, match=message) as failure:
        config.load(environment={"EDGECLOUD_EDGE__SERVER__API_KEYS_FILE": str(tmp_path / "keys")})
    assert "secret" not in failure.value.message


def test_no_key_of_the_configuration_ends_like_the_name_of_a_file() -> None:
    keys = [name for _, section in _sections(config_schema.Config(), "") for name in section.__struct_fields__]
    assert keys and not [key for key in keys if f"__{key}".endswith(config.FILE_SUFFIX.lower())]


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("edge.server.prt=1", "edge.server.prt: unknown key; did you mean 'port'?"),
        ("egde.server.port=1", "egde: unknown key; did you mean 'edge'?"),
        ("edge.server.port=many", "edge.server.port: expected `int`, got `str`"),
        ("edge.confidence.threshold=1.5", "edge.confidence.threshold: expected `float` <= 1.0"),
        ("experiments.ablations=[{nme: x}]", "experiments.ablations[0].nme: unknown key; did you mean 'name'?"),
        ("edge.server=3", "edge.server: expected `object`, got `int`"),
        ('edge.server.api_keys=[""]', "edge.server.api_keys[0]: is empty"),
        ('cloud.server.api_keys=[a, ""]', "cloud.server.api_keys[1]: is empty"),
        ('edge.private_keys=[""]', "edge.private_keys[0]: is empty"),
        ("edge.quotas.keys=[{api_key: a}, {api_key: a}]", "edge.quotas.keys[1].api_key: is named twice"),
        ("cloud.admission.keys=[{api_key: a}, {api_key: a}]", "cloud.admission.keys[1].api_key: is named twice"),
        ('cloud.admission.keys=[{api_key: ""}]', "cloud.admission.keys[0].api_key: is empty"),
        ("inference.budget.daily=5", "inference.budget.daily: needs prices, which communication.prices has"),
        ("edge.quotas.cost_per_day=5", "edge.quotas.cost_per_day: needs prices, which communication.prices has"),
        ("communication.prices.prompt=.inf", "communication.prices.prompt: must be a finite number"),
        (
            "communication.clouds=[{url: 'http://a', prices: {completion: .inf}}]",
            "communication.clouds[0].prices.completion: must be a finite number",
        ),
        ("nonsense", "nonsense: expected KEY=VALUE, for example edge.server.port=9000"),
    ],
)
def test_a_wrong_key_or_value_is_named_by_its_path(flag: str, message: str) -> None:
    with pytest.raises(ConfigError) as failure:
        config.load(flags=[flag], environment={})
    assert failure.value.message == message


@pytest.mark.parametrize("text", ["- a list", "a: [unclosed", "just words"])
def test_a_file_that_is_not_a_mapping_is_refused_in_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as failure:
        config.load(path, environment={})
    assert failure.value.message.startswith(str(path))
    assert "\n" not in failure.value.message


@pytest.mark.parametrize("data", [b"\xff\xfe", b"[" * 5000])
def test_a_file_that_cannot_be_read_as_yaml_is_refused_in_one_line(tmp_path: Path, data: bytes) -> None:
    file = tmp_path / "config.yaml"
    file.write_bytes(data)
    with pytest.raises(ConfigError, match=r"config\.yaml: not YAML \(.+\)$"):
        config.load(file, environment={})


def test_a_value_of_a_flag_that_is_nested_too_deep_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^models\.root: not a YAML value$"):
        config.load(None, ["models.root=" + "[" * 5000])


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        config.load("nowhere.yaml", environment={})

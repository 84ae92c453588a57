"""Where a pair's models are found: at their paths, under `models.root`, or by their hub ids."""

from pathlib import Path

import pytest

from common import config
from common.config_schema import Config
from common.errors import StartError
from common.files import model_root

PRESETS = sorted((config.DEFAULT_PATH.parent / "presets").glob("*.yaml"))
PAIR = ["edge.model.path=Owner/Small-GGUF:q4_k_m", "cloud.model.path=Owner/Large"]


def pair(*flags: str) -> Config:
    return config.load(flags=[*PAIR, *flags], environment={})


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.stem)
def test_every_preset_is_valid_and_takes_its_models_from_the_hub_or_from_this_project(preset: Path) -> None:
    loaded = config.load(preset, environment={})
    for model in (model_root.edge_model(loaded), model_root.cloud_model(loaded)):
        assert Path(model.path).exists() or len(model.path.split("/")) == 2
        assert Path(model.path).exists() == model.path.startswith("models/")


def test_without_a_root_hub_ids_stay_as_they_are() -> None:
    assert model_root.edge_model(pair()).path == "Owner/Small-GGUF:q4_k_m"
    assert model_root.cloud_model(pair()).path == "Owner/Large"


@pytest.mark.parametrize(("local", "folder"), [("", "Owner/Large"), ("", "Large"), ("mine", "mine"), ("mine", "Large")])
def test_a_cloud_model_is_found_by_its_local_name_or_its_hub_id(tmp_path: Path, local: str, folder: str) -> None:
    (tmp_path / folder).mkdir(parents=True)
    found = model_root.cloud_model(pair(f"models.root={tmp_path}", f"cloud.model.local={local or chr(39) * 2}"))
    assert found.path == str(tmp_path / folder)


def test_the_local_name_comes_before_the_hub_id(tmp_path: Path) -> None:
    for name in ("mine", "Large", "Owner/Large"):
        (tmp_path / name).mkdir(parents=True)
    found = model_root.cloud_model(pair(f"models.root={tmp_path}", "cloud.model.local=mine"))
    assert found.path == str(tmp_path / "mine")


def test_a_hub_ids_pattern_chooses_among_the_files_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "Owner" / "Small-GGUF").mkdir(parents=True)
    found = model_root.edge_model(pair(f"models.root={tmp_path}"))
    assert (found.path, found.pattern) == (str(tmp_path / "Owner" / "Small-GGUF"), "q4_k_m")


def test_a_path_that_exists_needs_no_root(tmp_path: Path) -> None:
    flags = ("models.root=nowhere", f"edge.model.path={tmp_path}", f"cloud.model.path={tmp_path}")
    assert model_root.edge_model(pair(*flags)).path == model_root.cloud_model(pair(*flags)).path == str(tmp_path)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "kept" / "Large").mkdir(parents=True)
    assert model_root.cloud_model(pair("models.root=~/kept")).path == str(tmp_path / "kept" / "Large")
    assert model_root.cloud_model(pair("cloud.model.path=~/kept/Large")).path == str(tmp_path / "kept" / "Large")


def test_a_model_that_is_not_under_the_root_is_an_error_with_all_places(tmp_path: Path) -> None:
    with pytest.raises(StartError) as edge:
        model_root.edge_model(pair(f"models.root={tmp_path}", "edge.model.local=small.gguf"))
    places = ", ".join(str(tmp_path / name) for name in ("small.gguf", "Owner/Small-GGUF", "Small-GGUF"))
    assert edge.value.message == f"edge.model.path: Owner/Small-GGUF:q4_k_m is not in models.root; tried {places}"
    with pytest.raises(StartError, match=r"^cloud\.model\.path: .* tried .*Owner/Large, .*/Large$"):
        model_root.cloud_model(pair(f"models.root={tmp_path}"))


def test_a_root_that_is_no_folder_is_said_as_such(tmp_path: Path) -> None:
    with pytest.raises(StartError, match=r"^models\.root: there is no folder .*/gone$"):
        model_root.edge_model(pair(f"models.root={tmp_path}/gone"))

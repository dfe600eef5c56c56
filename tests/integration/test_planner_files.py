"""Planners are found, fetched and checked, and what is wrong with one is named."""

import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from serve_app import errors
from serve_app.config.language_model import LanguageModelArgs
from serve_app.weights import planner_files, random_planner
from tests.support.hub import REPOSITORY, serving


@pytest.fixture(scope="module")
def built(cache: Path) -> Path:
    """A small random planner."""
    return random_planner.build(cache, lambda *progress: None)


@pytest.fixture
def copy(built: Path, tmp_path: Path) -> Path:
    """A copy of it that may be changed."""
    return shutil.copytree(built, tmp_path / "copy")


def _resolved(args: LanguageModelArgs, cache: Path) -> Path:
    return planner_files.resolve("m", args, cache, lambda *progress: None)


def test_a_random_planner_is_built_once(built: Path, cache: Path) -> None:
    """The source `random` is the same folder each time, and its weights are known to be random."""
    assert _resolved(LanguageModelArgs(source="random"), cache) == built
    assert planner_files.verify(built).random


def test_a_planner_comes_from_a_repository_of_many_models(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a repository with a song model and language models, only the planner's files are fetched."""
    repository = tmp_path / "repository"
    shutil.copytree(copy, repository / "acestep-5Hz-lm-1.7B")
    shutil.copytree(copy, repository / "Qwen3-Embedding-0.6B")
    (repository / "vae").mkdir()
    (repository / "vae" / "model.safetensors").write_text("other")

    with serving(repository) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
        found = _resolved(LanguageModelArgs(source=REPOSITORY), tmp_path / "cache")
        wanted = {f"acestep-5Hz-lm-1.7B/{name}" for name in ("config.json", "tokenizer.json", "model.safetensors")}

    assert wanted == set(hub.served)
    assert planner_files.verify(found).shape == planner_files.verify(copy).shape


def test_the_setting_chooses_of_several(copy: Path, tmp_path: Path) -> None:
    """A folder with two planners needs the setting that names one, and a wrong name is an error."""
    for name in ("a-5Hz-lm", "b-5Hz-lm"):
        shutil.copytree(copy, tmp_path / "both" / name)
    source = str(tmp_path / "both")

    assert _resolved(LanguageModelArgs(source=source, folder="b-5Hz-lm"), tmp_path) == tmp_path / "both" / "b-5Hz-lm"
    with pytest.raises(errors.WrongLayout, match="Set the planner's folder to one of a-5Hz-lm, b-5Hz-lm"):
        _resolved(LanguageModelArgs(source=source), tmp_path)
    with pytest.raises(errors.MissingFile, match="has no language model in c"):
        _resolved(LanguageModelArgs(source=source, folder="c"), tmp_path)
    with pytest.raises(errors.MissingFile, match="does not exist on this node"):
        _resolved(LanguageModelArgs(source=f"{source}-no"), tmp_path)


def test_damage_is_found_before_the_weights_are_read(copy: Path) -> None:
    """A truncated file, a lost tensor and one of another shape are errors that name them."""
    file = copy / "model.safetensors"
    file.chmod(0o600)
    tensors = load_file(file)

    save_file({name: tensor for name, tensor in tensors.items() if "layers.1.mlp.up" not in name}, file)
    with pytest.raises(errors.CorruptFile, match=r"lack the tensor layers\.1\.mlp\.up_proj\.weight"):
        planner_files.verify(copy)
    save_file({**tensors, "model.norm.weight": tensors["model.norm.weight"][:5].clone()}, file)
    with pytest.raises(errors.CorruptFile, match=r"norm\.weight has the shape \[5\], but config\.json says \[64\]"):
        planner_files.verify(copy)
    file.write_bytes(file.read_bytes()[:-50])
    with pytest.raises(errors.CorruptFile, match=r"model\.safetensors is truncated or corrupt"):
        planner_files.verify(copy)
    file.unlink()
    with pytest.raises(errors.MissingFile, match=r"model\.safetensors is missing"):
        planner_files.verify(copy)


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        ({"model_type": "llama"}, errors.WrongClass, "a 'llama' model, but planners are qwen3 models"),
        ({"attention_bias": True}, errors.WrongClass, "attention biases"),
        ({"hidden_size": None}, errors.CorruptFile, "not the configuration of a Qwen3 model"),
    ],
)
def test_another_model_is_refused(
    change: dict[str, object], kind: type[errors.LoadError], message: str, copy: Path
) -> None:
    """A language model that Sophia cannot compute is refused by name."""
    file = copy / "config.json"
    content = {**json.loads(file.read_text()), **change}
    file.chmod(0o600)
    file.write_text(json.dumps(content))

    with pytest.raises(kind, match=message):
        planner_files.verify(copy)

"""Checking the files of a local checkpoint."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serve_app import errors, weights
from serve_app.config import ModelArgs
from serve_app.weights import manifest
from tests.support.checkpoints import LARGEST, RANDOM


def test_a_local_folder_is_used_where_it_is(copy: Path, tmp_path: Path) -> None:
    """An absolute folder is the checkpoint itself: nothing is copied."""
    assert weights.resolve("m", ModelArgs(source=str(copy)), tmp_path / "cache", lambda *report: None) == copy


def test_a_local_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A folder that does not exist is an error that names the setting and the folder."""
    with pytest.raises(errors.MissingFile, match=r"models\.m\.source: the folder .*/nowhere does not exist"):
        weights.resolve("m", ModelArgs(source=str(tmp_path / "nowhere")), tmp_path, lambda *report: None)


@pytest.mark.parametrize(
    "name",
    [
        "transformer/config.json",
        "transformer/diffusion_pytorch_model.safetensors",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "scheduler/scheduler_config.json",
        "model_index.json",
    ],
)
def test_a_missing_file_is_named(name: str, copy: Path) -> None:
    """A checkpoint that lacks a file is refused with the file's name."""
    (copy / name).unlink()

    with pytest.raises(errors.MissingFile, match=name):
        weights.verify(copy, RANDOM)


def test_a_truncated_weight_file_is_found_without_reading_it(copy: Path) -> None:
    """A weight file one byte shorter than its header says is refused with its name and size."""
    file = copy / LARGEST
    size = file.stat().st_size
    with file.open("r+b") as stream:
        stream.truncate(size - 1)

    with pytest.raises(errors.CorruptFile, match=rf"{LARGEST} is truncated or corrupt \({size - 1} bytes;"):
        weights.verify(copy, RANDOM)


def test_a_weight_file_with_bytes_appended_is_refused(copy: Path) -> None:
    """A weight file one byte longer than its header says is refused with its name."""
    with (copy / LARGEST).open("ab") as stream:
        stream.write(b"x")

    with pytest.raises(errors.CorruptFile, match=f"{LARGEST} is truncated or corrupt"):
        weights.verify(copy, RANDOM)


@pytest.mark.parametrize(
    "content", [b"", b"\x01\x02", b"\xff" * 64, b"<!DOCTYPE html>" * 20, b"\x02" + bytes(7) + b"[]"]
)
def test_a_weight_file_that_is_something_else_is_refused(content: bytes, copy: Path) -> None:
    """An empty file, garbage, or an error page saved in a weight file's place is refused with the file's name."""
    (copy / LARGEST).write_bytes(content)

    with pytest.raises(errors.CorruptFile, match=rf"{LARGEST} is truncated or corrupt \({len(content)} bytes;"):
        weights.verify(copy, RANDOM)


def test_a_configuration_that_is_not_json_is_refused(copy: Path) -> None:
    """A configuration file that was cut is refused with the file's name."""
    (copy / "transformer" / "config.json").write_text('{"is_turbo": tr')

    with pytest.raises(errors.CorruptFile, match=r"transformer/config\.json is not JSON"):
        weights.verify(copy, RANDOM)


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("_class_name", "StableAudioPipeline", "the pipeline 'StableAudioPipeline'"),
        ("transformer", ["diffusers", "StableAudioDiTModel"], "the class StableAudioDiTModel for transformer"),
        ("text_encoder", ["transformers", "T5EncoderModel"], "the class T5EncoderModel for text_encoder"),
    ],
)
def test_another_class_is_refused(key: str, value: object, expected: str, copy: Path) -> None:
    """A checkpoint of another pipeline or component class is refused with that class's name."""
    _edit(copy / "model_index.json", {key: value})

    with pytest.raises(errors.WrongClass, match=expected):
        weights.verify(copy, RANDOM)


def test_a_folder_without_a_checkpoint_is_refused(tmp_path: Path) -> None:
    """A folder in no known layout is refused with the page that lists the layouts."""
    (tmp_path / "notes.txt").write_text("hello")

    with pytest.raises(errors.WrongLayout, match=r"is not an ACE-Step 1\.5 checkpoint: .*docs/CHECKPOINTS\.md"):
        weights.resolve("m", ModelArgs(source=str(tmp_path)), tmp_path / "cache", lambda *report: None)


def test_optional_components_may_be_absent(copy: Path) -> None:
    """A checkpoint without the audio tokenizer, as some published ones are, is accepted and says so."""
    _edit(copy / "model_index.json", {"audio_tokenizer": [None, None], "audio_token_detokenizer": [None, None]})
    shutil.rmtree(copy / "audio_tokenizer")

    assert not weights.verify(copy, RANDOM).has_audio_tokenizer


def test_shards_are_checked_like_one_file(copy: Path) -> None:
    """Weights in several files are found through their index, and a missing one is named."""
    whole = copy / "transformer" / "diffusion_pytorch_model.safetensors"
    shards = [whole.with_name(f"diffusion_pytorch_model-0000{i}-of-00002.safetensors") for i in (1, 2)]
    shutil.copy(copy / "vae" / whole.name, shards[0])
    whole.rename(shards[1])
    index = {"weight_map": {"a": shards[0].name, "b": shards[1].name, "c": shards[1].name}}
    whole.with_name(whole.name + ".index.json").write_text(json.dumps(index))

    facts = weights.verify(copy, RANDOM)
    shards[0].unlink()

    assert {f"transformer/{shard.name}" for shard in shards} <= facts.files.keys()
    with pytest.raises(errors.MissingFile, match=shards[0].name):
        weights.verify(copy, RANDOM)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"is_turbo": True, "model_version": None}, "turbo"),
        ({"is_turbo": False, "model_version": "turbo"}, "turbo"),
        ({"is_turbo": False, "model_version": "sft"}, "sft"),
        ({"is_turbo": False, "model_version": "base"}, "base"),
        ({"is_turbo": False, "model_version": None}, "base"),
    ],
)
def test_the_variant_is_read_from_the_transformer(config: dict[str, object], expected: str, copy: Path) -> None:
    """turbo, base or sft comes from the transformer's configuration."""
    _edit(copy / "transformer" / "config.json", config)

    assert weights.verify(copy, RANDOM).variant == expected


def test_the_configured_variant_beats_the_checkpoint(checkpoint: Path) -> None:
    """`variant` in the configuration is believed over the checkpoint."""
    assert weights.verify(checkpoint, ModelArgs(source="random", variant="sft")).variant == "sft"


def _edit(file: Path, changes: dict[str, object]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_a_small_file_is_whole_whoever_writes_it_at_once(tmp_path: Path) -> None:
    """Writers with one process id, as two containers may have, neither fail nor mix what they write, and leave no draft."""
    texts = [letter * 100_000 for letter in "abcd"]

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda turn: manifest.write_whole(tmp_path / "ref", texts[turn % 4]), range(200)))

    assert (tmp_path / "ref").read_text() in texts
    assert [file.name for file in tmp_path.iterdir()] == ["ref"]

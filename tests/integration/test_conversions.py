"""Checkpoints in other layouts than diffusers': what they are converted to."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import AceStepTransformer1DModel
from safetensors.torch import save_file

from serve_app import errors, weights
from serve_app.config import ModelArgs
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.ops.cli import main
from serve_app.weights.convert import headers
from serve_app.weights.layout import LYRIC_HEADS, OPTIONAL
from tests.support.engines import generate
from tests.support.layouts import (
    ORIGINAL_CONFIG,
    Weights,
    load,
    make_all_in_one,
    make_original,
    make_parts,
    make_split_files,
)

COMPONENTS = (
    "transformer",
    "condition_encoder",
    "audio_tokenizer",
    "audio_token_detokenizer",
    "vae",
    "text_encoder",
)


def _converted(source: Path, cache: Path, **settings: str) -> Path:
    return weights.resolve("m", ModelArgs(source=str(source), device="cpu", **settings), cache, lambda *report: None)


def _assert_same_tensors(folder: Path, checkpoint: Path) -> None:
    for component in COMPONENTS:
        _assert_same(load(folder, component), load(checkpoint, component))


def _assert_same(found: Weights, expected: Weights) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert torch.equal(found[name], tensor), name


@pytest.mark.parametrize("shards", [1, 3])
def test_the_original_layout_is_converted(shards: int, checkpoint: Path, tmp_path: Path) -> None:
    """ACE-Step's own layout, in one file or in shards, becomes diffusers' with the same tensors, and plays."""
    source = make_original(checkpoint, tmp_path / "original", shards)

    folder = _converted(source, tmp_path / "cache")

    _assert_same_tensors(folder, checkpoint)
    args = ModelArgs(source=str(source), device="cpu")
    facts = AceStepEngine("m", args, tmp_path / "cache").load(lambda *report: None)
    assert (facts.variant, facts.weights_bytes) == ("turbo", weights.verify(folder, args).bytes)
    assert weights.verify(folder, args).has_audio_tokenizer
    assert json.loads((folder / "transformer" / "original_config.json").read_text()) == ORIGINAL_CONFIG
    config = json.loads((folder / "transformer" / "config.json").read_text())
    assert config[LYRIC_HEADS] == ORIGINAL_CONFIG[LYRIC_HEADS]


def test_a_converted_model_plays_the_same_song(cache: Path, tmp_path: Path) -> None:
    """The embedded model, whose attention has other settings than the released ones, plays the same after a conversion."""
    folder = weights.resolve("m", ModelArgs(source="embedded"), cache, lambda *report: None)
    config = json.loads((folder / "transformer" / "config.json").read_text())
    original = make_original(folder, tmp_path / "original", config=config)
    songs = []

    for source in (folder, original):  # not "embedded", for which the engine has a default of its own
        engine = AceStepEngine("m", ModelArgs(source=str(source), device="cpu"), tmp_path / "cache")
        engine.load(lambda *report: None)
        songs.append(generate(engine)[0].samples)

    assert np.array_equal(songs[0], songs[1])


def test_comfyuis_all_in_one_file_is_converted(checkpoint: Path, tmp_path: Path) -> None:
    """The all-in-one file becomes diffusers' layout, with the tokenizer and the silence from elsewhere, and lists its planner."""
    source = make_all_in_one(checkpoint, tmp_path / "comfyui")
    parts = make_parts(checkpoint, tmp_path / "parts")

    folder = _converted(source, tmp_path / "cache", parts_from=str(parts))

    _assert_same_tensors(folder, checkpoint)
    record = json.loads((folder / "conversion.json").read_text())
    planner = [f"text_encoders.qwen3_2b.transformer.model.{name}" for name in ("norm.weight", "x.weight")]
    assert record["unused_tensors"] == planner
    args = ModelArgs(source=str(source), parts_from=str(parts), device="cpu")
    assert AceStepEngine("m", args, tmp_path / "cache").load(lambda *report: None).variant == "turbo"


def test_a_local_file_may_be_the_source(checkpoint: Path, tmp_path: Path) -> None:
    """The path of an all-in-one file is enough; what lies beside it does not matter."""
    folder = make_all_in_one(checkpoint, tmp_path / "comfyui") / "checkpoints"
    file = folder / "ace_step_1.5_turbo_aio.safetensors"
    shutil.copy(file, folder / "ace_step_1.5_sft_aio.safetensors")
    parts = make_parts(checkpoint, tmp_path / "parts")

    made = _converted(file, tmp_path / "cache", parts_from=str(parts))

    _assert_same_tensors(made, checkpoint)
    assert weights.verify(made, ModelArgs()).variant == "turbo"


def test_comfyuis_split_files_are_converted(checkpoint: Path, tmp_path: Path) -> None:
    """Of several diffusion models among split files, `dit` chooses one; its name says the variant."""
    source = make_split_files(checkpoint, tmp_path / "comfyui", ["acestep_v1.5_turbo", "acestep_v1.5_sft"])
    parts = make_parts(checkpoint, tmp_path / "parts")
    dit = "diffusion_models/acestep_v1.5_sft.safetensors"

    with pytest.raises(errors.WrongLayout, match=r"has 2 diffusion models: .*sft.*turbo.*Set models\.m\.dit"):
        _converted(source, tmp_path / "cache", parts_from=str(parts))
    folder = _converted(source, tmp_path / "cache", parts_from=str(parts), dit=dit)

    _assert_same_tensors(folder, checkpoint)
    assert weights.verify(folder, ModelArgs()).variant == "sft"


def test_the_configuration_of_a_conversion_is_that_of_the_modules(checkpoint: Path, tmp_path: Path) -> None:
    """Sizes that come from shapes alone are those that the modules were made with."""
    source = make_all_in_one(checkpoint, tmp_path / "comfyui")
    parts = make_parts(checkpoint, tmp_path / "parts")

    folder = _converted(source, tmp_path / "cache", parts_from=str(parts))

    for component in COMPONENTS[:-1]:
        made = json.loads((checkpoint / component / "config.json").read_text())
        found = json.loads((folder / component / "config.json").read_text())
        assert {key: found.get(key) for key in made} == {**made, "_diffusers_version": None}, component


def test_a_repository_of_one_diffusion_model_is_completed(checkpoint: Path, tmp_path: Path) -> None:
    """Where the source's root is the diffusion model alone, as in `acestep-v15-sft`, the other parts come from elsewhere."""
    parts = make_original(checkpoint, tmp_path / "parts")
    source = tmp_path / "acestep-v15-sft"
    shutil.copytree(parts / "acestep-v15-turbo", source)
    config = ORIGINAL_CONFIG | {"is_turbo": False, "model_version": "sft"}
    (source / "config.json").write_text(json.dumps(config))

    folder = _converted(source, tmp_path / "cache", parts_from=str(parts))

    _assert_same_tensors(folder, checkpoint)
    assert weights.verify(folder, ModelArgs()).variant == "sft"
    assert _converted(source, tmp_path / "cache", parts_from=str(parts), dit=".") != folder


def test_a_transformer_wider_than_its_condition_encoder_is_converted(copy: Path, tmp_path: Path) -> None:
    """The XL models' transformer has another width, other heads and another depth than the condition encoder."""
    wide = AceStepTransformer1DModel(
        hidden_size=96,
        intermediate_size=160,
        num_hidden_layers=3,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=16,
        encoder_hidden_size=64,
        is_turbo=True,
        model_version="turbo",
    )
    wide.save_pretrained(copy / "transformer")
    source = make_split_files(copy, tmp_path / "comfyui", ["acestep_v1.5_xl_turbo_bf16"])

    folder = _converted(source, tmp_path / "cache", parts_from=str(make_parts(copy, tmp_path / "parts")))

    _assert_same_tensors(folder, copy)
    loaded = AceStepTransformer1DModel.from_pretrained(folder / "transformer")
    assert {key: value for key, value in loaded.config.items() if not key.startswith("_")} == {
        key: value for key, value in wide.config.items() if not key.startswith("_")
    }


def test_mixed_dtypes_are_kept(copy: Path, tmp_path: Path) -> None:
    """A file with bfloat16, float16 and float32 tensors keeps each of them, and can be mapped into memory."""
    dtypes = [torch.bfloat16, torch.float32, torch.float16]
    tensors = load(copy, "transformer")
    mixed = {name: tensor.to(dtypes[at % 3]) for at, (name, tensor) in enumerate(tensors.items())}
    save_file(mixed, copy / "transformer" / "diffusion_pytorch_model.safetensors")
    source = make_original(copy, tmp_path / "original")

    folder = _converted(source, tmp_path / "cache")

    _assert_same_tensors(folder, copy)


def test_large_components_are_written_in_shards(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A component above the size of a shard becomes several files with their index, which load."""
    monkeypatch.setattr(headers, "_SHARD_BYTES", 500_000)
    source = make_original(checkpoint, tmp_path / "original")

    folder = _converted(source, tmp_path / "cache")

    assert len(list((folder / "transformer").glob("*.safetensors"))) == 3
    _assert_same_tensors(folder, checkpoint)
    args = ModelArgs(source=str(source), device="cpu")
    assert AceStepEngine("m", args, tmp_path / "cache").load(lambda *report: None).variant == "turbo"


def test_the_tokenizers_class_is_the_one_that_it_names(checkpoint: Path, tmp_path: Path) -> None:
    """The class that the text tokenizer's configuration names is loaded, as for Qwen's own tokenizer."""
    source = make_original(checkpoint, tmp_path / "original")
    settings = source / "Qwen3-Embedding-0.6B" / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "Qwen2Tokenizer"}))

    folder = _converted(source, tmp_path / "cache")

    assert json.loads((folder / "model_index.json").read_text())["tokenizer"] == ["transformers", "Qwen2Tokenizer"]
    args = ModelArgs(source=str(source), device="cpu")
    assert AceStepEngine("m", args, tmp_path / "cache").load(lambda *report: None).variant == "turbo"


def test_weights_show_tells_what_will_be_converted(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command names the layout, each part's file and the unused tensors, and converts nothing."""
    source = make_all_in_one(checkpoint, tmp_path / "comfyui")
    parts = make_parts(checkpoint, tmp_path / "parts")
    monkeypatch.setenv("SOPHIA_DATA_DIR", str(tmp_path / "data"))
    monkeypatch.setenv("SOPHIA_MODELS", json.dumps({"m": {"source": str(source), "parts_from": str(parts)}}))

    assert main(["weights", "show", "m"]) == 0

    shown = capsys.readouterr().out
    assert "layout: ComfyUI's layout" in shown
    assert f"  vae: checkpoints/ace_step_1.5_turbo_aio.safetensors of {source}" in shown
    assert f"  tokenizer: Qwen3-Embedding-0.6B/tokenizer.json of {parts}" in shown
    assert "tensors that are not used: 2, from text_encoders.qwen3_2b" in shown
    assert not list((tmp_path / "data").rglob("*.safetensors*"))


# --- Incomplete diffusers checkpoints -------------------------------------------------------------------------------


def _without_scheduler(folder: Path) -> None:
    """As diffusers' own conversion script leaves it: no scheduler, and no audio tokenizers."""
    for part in ("scheduler", "audio_tokenizer", "audio_token_detokenizer"):
        shutil.rmtree(folder / part)
    index = json.loads((folder / "model_index.json").read_text())
    kept = {key: value for key, value in index.items() if key not in ("scheduler", *OPTIONAL)}
    (folder / "model_index.json").write_text(json.dumps(kept))


def _without_tokenizer(folder: Path) -> None:
    shutil.rmtree(folder / "tokenizer")


def _without_index(folder: Path) -> None:
    (folder / "model_index.json").unlink()


def _index_without_entries(folder: Path) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "AceStepPipeline"}))


def _half_precision_names(folder: Path) -> None:
    for file in folder.glob("*/diffusion_pytorch_model.safetensors"):
        file.rename(file.with_name("diffusion_pytorch_model.fp16.safetensors"))


@pytest.mark.parametrize(
    "spoil",
    [_without_scheduler, _without_tokenizer, _without_index, _index_without_entries, _half_precision_names],
)
def test_an_incomplete_diffusers_checkpoint_is_completed(
    spoil: Callable[[Path], None], copy: Path, checkpoint: Path, tmp_path: Path
) -> None:
    """What a third party's conversion leaves out is added, and its tensors stay what they are."""
    parts = make_parts(checkpoint, tmp_path / "parts")
    spoil(copy)

    folder = _converted(copy, tmp_path / "cache", parts_from=str(parts))

    args = ModelArgs(source=str(copy), parts_from=str(parts), device="cpu")
    facts = weights.verify(folder, args)
    assert facts.has_audio_tokenizer == (copy / "audio_tokenizer").exists()
    for component in facts.numbers:
        _assert_same(load(folder, component), load(checkpoint, component))
    assert AceStepEngine("m", args, tmp_path / "cache").load(lambda *report: None).variant == "turbo"


def test_the_attentions_old_names_and_other_dtypes_are_read(copy: Path, checkpoint: Path, tmp_path: Path) -> None:
    """A conversion from before diffusers renamed the attention's projections, in float16, gets today's names."""
    _without_scheduler(copy)
    old = {
        name.replace(".to_q.", ".q_proj.").replace(".to_out.0.", ".o_proj."): tensor.half()
        for name, tensor in load(copy, "transformer").items()
    }
    save_file(old, copy / "transformer" / "diffusion_pytorch_model.safetensors")

    folder = _converted(copy, tmp_path / "cache")

    halves = {name: tensor.half() for name, tensor in load(checkpoint, "transformer").items()}
    _assert_same(load(folder, "transformer"), halves)


def test_silence_that_the_condition_encoder_lacks_is_added(copy: Path, checkpoint: Path, tmp_path: Path) -> None:
    """Where the latents of silence are missing in the condition encoder, they come from `parts_from`."""
    parts = make_parts(checkpoint, tmp_path / "parts")
    _without_scheduler(copy)
    tensors = load(copy, "condition_encoder")
    del tensors["silence_latent"]
    save_file(tensors, copy / "condition_encoder" / "diffusion_pytorch_model.safetensors")

    folder = _converted(copy, tmp_path / "cache", parts_from=str(parts))

    _assert_same(load(folder, "condition_encoder"), load(checkpoint, "condition_encoder"))


def test_a_complete_diffusers_folder_costs_only_a_look_at_its_names(copy: Path, tmp_path: Path) -> None:
    """Nothing of such a folder is read, and nothing is written to the cache."""
    folder = _converted(copy, tmp_path / "cache", parts_from="nobody/nothing")

    assert folder == copy
    assert not (tmp_path / "cache").exists()

"""How the parts of checkpoints are recognised by the names of files in published repositories."""

import pytest

from serve_app import errors
from serve_app.weights.convert import parts

_WORDS = ("tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt", "added_tokens.json")


def _language_model(folder: str) -> list[str]:
    return [f"{folder}/{name}" for name in ("config.json", "model.safetensors", *_WORDS)]


REPOSITORY = [
    "README.md",
    "config.json",
    "acestep-v15-turbo/config.json",
    "acestep-v15-turbo/configuration_acestep_v15.py",
    "acestep-v15-turbo/model.safetensors",
    "acestep-v15-turbo/silence_latent.pt",
    "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
    *_language_model("Qwen3-Embedding-0.6B"),
    *_language_model("acestep-5Hz-lm-1.7B"),
]
"""ACE-Step/Ace-Step1.5."""

SHARDED = [
    "config.json",
    "model.safetensors.index.json",
    "silence_latent.pt",
    *(f"model-{at:05}-of-00004.safetensors" for at in range(1, 5)),
]
"""A repository of one XL model."""

COMFYUI = [
    "checkpoints/ace_step_1.5_turbo_aio.safetensors",
    "split_files/diffusion_models/acestep_v1.5_base.safetensors",
    "split_files/diffusion_models/acestep_v1.5_turbo.safetensors",
    "split_files/diffusion_models/acestep_v1.5_xl_sft_bf16.safetensors",
    "split_files/text_encoders/qwen_0.6b_ace15.safetensors",
    "split_files/text_encoders/qwen_1.7b_ace15.safetensors",
    "split_files/text_encoders/qwen_4b_ace15.safetensors",
    "split_files/vae/ace_1.5_vae.safetensors",
]
"""Comfy-Org/ace_step_1.5_ComfyUI_files."""

INSTALLATION = [
    "checkpoints/ace_step_v1_3.5b.safetensors",
    "checkpoints/sd_xl_base_1.0.safetensors",
    "diffusion_models/acestep_v1.5_turbo.safetensors",
    "loras/my_acestep_v1.5_lora.safetensors",
    "text_encoders/qwen_0.6b_ace15.safetensors",
    "text_encoders/qwen_3_0.6b_base.safetensors",
    "vae/ace_1.5_vae.safetensors",
    "vae/surface_vae.safetensors",
]
"""The folder `models` of an installation of ComfyUI, with other models."""


def _found(names: list[str]) -> list[tuple[str, str]]:
    return [(dit.layout, dit.name) for dit in parts.find_dits(names)]


def test_ace_steps_repository_has_one_diffusion_model() -> None:
    """Language models and the configuration at the root are not taken for one, and all other parts are found."""
    [dit] = parts.find_dits(REPOSITORY)

    assert (dit.layout, dit.name) == ("original", "acestep-v15-turbo")
    assert parts.find_vae(REPOSITORY) == parts.WeightSet(
        ("vae/diffusion_pytorch_model.safetensors",), "vae/config.json"
    )
    text = parts.find_text_encoder(REPOSITORY)
    assert text is not None
    assert text.files == ("Qwen3-Embedding-0.6B/model.safetensors",)
    assert set(parts.find_tokenizer(REPOSITORY)) == {f"Qwen3-Embedding-0.6B/{name}" for name in _WORDS}
    assert parts.find_silence(REPOSITORY, dit) == "acestep-v15-turbo/silence_latent.pt"


def test_a_repository_may_be_one_model_in_shards() -> None:
    """A model at the root is found with its shards, and nothing else is."""
    [dit] = parts.find_dits(SHARDED)

    assert (dit.layout, dit.name, len(dit.weights.files)) == ("original", "", 4)
    assert parts.find_vae(SHARDED) is None
    assert parts.find_text_encoder(SHARDED) is None
    assert parts.find_tokenizer(SHARDED) == ()


def test_a_missing_shard_is_found_by_name() -> None:
    """Shards are counted by their names."""
    [dit] = parts.find_dits(name for name in SHARDED if "00003" not in name)

    with pytest.raises(errors.MissingFile, match="shards 3 of 4 are missing"):
        parts.check_shards(dit.weights)


def test_comfyuis_repository_needs_a_choice() -> None:
    """All diffusion models are listed; the planners among the text encoders are not taken for the text encoder."""
    assert [name for layout, name in _found(COMFYUI) if layout == "comfyui"] == COMFYUI[:4]
    with pytest.raises(errors.WrongLayout, match=r"has 4 diffusion models: .*Set models\.m\.dit to one of them"):
        parts.choose_dit("it", "models.m.dit", COMFYUI, None)

    dit = parts.choose_dit("it", "models.m.dit", COMFYUI, COMFYUI[3])

    assert dit is not None
    assert dit.weights.files == (COMFYUI[3],)
    assert parts.find_vae(COMFYUI) == parts.WeightSet((COMFYUI[7],), None)
    assert parts.find_text_encoder(COMFYUI) == parts.WeightSet((COMFYUI[4],), None)


def test_an_installation_of_comfyui_may_have_other_models() -> None:
    """ACE-Step 1, adapters and other programs' models are not taken for ACE-Step 1.5's, and do not belong to a conversion."""
    assert _found(INSTALLATION) == [("comfyui", "diffusion_models/acestep_v1.5_turbo.safetensors")]

    used = parts.relevant(INSTALLATION, parts.find_dits(INSTALLATION)[0])

    assert used == {INSTALLATION[2], INSTALLATION[4], INSTALLATION[6]}
    others = [name for name in INSTALLATION if name not in used]
    assert parts.find_vae(others) is None
    assert parts.find_text_encoder(others) is None


def test_a_planner_alone_is_no_checkpoint() -> None:
    """A repository of a language model has no diffusion model."""
    names = [name.removeprefix("x/") for name in _language_model("x")]

    assert _found(names) == []

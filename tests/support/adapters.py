"""Adapters made with the libraries that people train them with, and what those libraries make of them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import lycoris
import peft
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

ATTENTION: Final = ["to_q", "to_k", "to_v", "to_out.0"]
"""The layers that ACE-Step's own trainers adapt."""
ORIGINAL_NAMES: Final = {
    ".to_q": ".q_proj",
    ".to_k": ".k_proj",
    ".to_v": ".v_proj",
    ".to_out.0": ".o_proj",
    "proj_in_conv": "proj_in.1",
}


def velocity(transformer: Any, seed: int = 0) -> Tensor:
    """What the transformer predicts for random inputs, always the same for a seed: of shape (2, 20, 64)."""
    generator = torch.Generator().manual_seed(seed)
    width = transformer.config.encoder_hidden_size or transformer.config.hidden_size
    with torch.inference_mode():
        predicted: Tensor = transformer(
            hidden_states=torch.randn(2, 20, 64, generator=generator),
            timestep=torch.tensor([0.3, 0.9]),
            timestep_r=torch.tensor([0.3, 0.9]),
            encoder_hidden_states=torch.randn(2, 7, width, generator=generator),
            context_latents=torch.randn(2, 20, 128, generator=generator),
            return_dict=False,
        )[0]
    return predicted.clone()


def randomize(parameters: Any, seed: int = 0, size: float = 0.2) -> None:
    """Changes every trainable parameter: adapters begin without an effect."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator) * size)


def peft_folder(transformer: Any, folder: Path, config: peft.PeftConfig, seed: int = 0) -> Tensor:
    """Saves a random PEFT adapter of `transformer` in `folder`, named as in the original; returns PEFT's own velocity."""
    adapted = peft.get_peft_model(transformer, config)
    randomize(adapted.parameters(), seed)
    adapted.eval()
    adapted.save_pretrained(folder)
    rename_as_original(folder)
    expected = velocity(adapted)
    adapted.unload()
    return expected


def rename_as_original(folder: Path) -> None:
    """Renames the layers of a PEFT folder as if the original's transformer had been adapted instead of diffusers'."""
    rename(folder / "adapter_model.safetensors", originally)
    settings = folder / "adapter_config.json"
    settings.write_text(originally(settings.read_text()))


def lycoris_file(transformer: Any, file: Path, **options: Any) -> Tensor:
    """Saves a random LyCORIS adapter of `transformer`, named as in the original; returns LyCORIS's own velocity."""
    network = lycoris.create_lycoris(transformer, 1.0, **options)
    network.apply_to()
    randomize(network.parameters())
    network.eval()
    expected = velocity(transformer)
    network.restore()
    network.save_weights(file, torch.float32, {})
    rename(file, originally)
    return expected


def originally(name: str) -> str:
    """A layer's name, or a text with such names, as the original ACE-Step has it."""
    for diffusers, original in ORIGINAL_NAMES.items():
        name = name.replace(diffusers, original).replace(diffusers.replace(".", "_"), original.replace(".", "_"))
    return name


def rename(file: Path, new_name: Callable[[str], str]) -> None:
    """Renames the tensors of a safetensors file."""
    save_file({new_name(name): tensor for name, tensor in load_file(file).items()}, file)


def edit_tensors(file: Path, change: Callable[[dict[str, Tensor]], Mapping[str, Tensor]]) -> None:
    """Replaces the tensors of a safetensors file by what `change` makes of them."""
    save_file(dict(change(load_file(file))), file)


def comfyui_file(folder: Path, file: Path, prefix: str) -> None:
    """Writes a PEFT folder as ComfyUI's single file: other names, and alpha as a tensor for each layer."""
    settings = json.loads((folder / "adapter_config.json").read_text())
    found: dict[str, Tensor] = {}
    for name, tensor in load_file(folder / "adapter_model.safetensors").items():
        layer, _, part = name.removeprefix("base_model.model.").partition(".lora_")
        found[f"{prefix}{layer}.lora_{'down' if part.startswith('A') else 'up'}.weight"] = tensor
        found[f"{prefix}{layer}.alpha"] = torch.tensor(float(settings["lora_alpha"]))
    save_file(found, file)

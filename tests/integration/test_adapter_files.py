"""Adapter files of each format change the transformer as the library that wrote them does; all others are refused by name."""

import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from diffusers import AceStepPipeline, AceStepTransformer1DModel
from safetensors.torch import load_file

from serve_app import weights
from serve_app.config import AdapterArgs
from serve_app.engine.ace_step.adapters.adapters import Adapters
from serve_app.engine.ace_step.adapters.blend import Blend
from serve_app.errors import BadAdapter
from tests.support import failure_codes
from tests.support.adapters import (
    ATTENTION,
    comfyui_file,
    edit_tensors,
    lycoris_file,
    peft_folder,
    rename,
    velocity,
)
from tests.support.checkpoints import edit

ROUNDING = 1e-5
"""How far velocities of size 1 may differ where the same sums are made in another order. Measured: under 3e-6."""
WEIGHTS = "adapter_model.safetensors"
LORA = peft.LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION)
LEAST_EFFECT = 1e-2
"""The least change that an adapter of these tests makes."""


@pytest.fixture(scope="module")
def transformer(checkpoint: Path) -> Any:
    """The random checkpoint's transformer."""
    return AceStepTransformer1DModel.from_pretrained(checkpoint / "transformer").eval().requires_grad_(False)


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(r=8, lora_alpha=16, target_modules=ATTENTION),
        peft.LoraConfig(r=64, lora_alpha=128, target_modules=ATTENTION),
        peft.LoraConfig(r=8, lora_alpha=16, target_modules=ATTENTION, use_rslora=True),
        peft.LoraConfig(r=8, lora_alpha=8, target_modules="all-linear"),
        peft.LoraConfig(
            r=8,
            lora_alpha=4,
            target_modules=ATTENTION,
            rank_pattern={"layers.1.self_attn.to_q": 2},
            alpha_pattern={"layers.1.self_attn.to_q": 32, "cross_attn.to_v": 1},
        ),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=ATTENTION, use_dora=True),
        peft.LoraConfig(r=4, lora_alpha=8, target_modules=["linear_1", "condition_embedder"], use_dora=True),
        peft.LoKrConfig(r=4, alpha=2, target_modules=ATTENTION),
        peft.LoKrConfig(r=2, alpha=8, target_modules=ATTENTION, decompose_both=True, decompose_factor=8),
    ],
    ids=lambda config: f"{config.peft_type.value} {config.target_modules} {getattr(config, 'use_dora', '')}",
)
def test_a_peft_folder_counts_as_in_peft(config: peft.PeftConfig, transformer: Any, tmp_path: Path) -> None:
    """LoRA, rsLoRA, DoRA and LoKr, with alpha from adapter_config.json, give the velocity that PEFT itself computes."""
    plain = velocity(transformer)
    expected = peft_folder(transformer, tmp_path, config)

    found = adapted(transformer, tmp_path)

    assert (expected - plain).abs().max() > LEAST_EFFECT
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)
    assert torch.equal(velocity(transformer), plain)


@pytest.mark.parametrize(
    "options",
    [
        {"algo": "lora", "linear_dim": 4, "linear_alpha": 2},
        {"algo": "lora", "linear_dim": 4, "linear_alpha": 2, "rs_lora": True},
        {"algo": "lora", "linear_dim": 4, "linear_alpha": 4, "dora_wd": True},
        {"algo": "lora", "linear_dim": 4, "linear_alpha": 4, "dora_wd": True, "wd_on_output": False},
        {"algo": "lokr", "linear_dim": 2, "linear_alpha": 1, "factor": 4},
        {"algo": "lokr", "linear_dim": 2, "linear_alpha": 8, "factor": 8, "decompose_both": True},
        {"algo": "lokr", "linear_dim": 10_000, "linear_alpha": 1, "factor": -1},
        {"algo": "lokr", "linear_dim": 2, "linear_alpha": 2, "factor": 4, "dora_wd": True},
    ],
    ids=str,
)
def test_a_lycoris_file_counts_as_in_lycoris(options: dict[str, Any], transformer: Any, tmp_path: Path) -> None:
    """LoRA, LoKr and DoRA of every layer give the velocity that LyCORIS itself computes."""
    plain = velocity(transformer)
    expected = lycoris_file(transformer, tmp_path / "adapter.safetensors", **options)

    found = adapted(transformer, tmp_path / "adapter.safetensors")

    assert (expected - plain).abs().max() > LEAST_EFFECT
    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize("prefix", ["diffusion_model.", "", "diffusion_model.decoder.", "transformer."])
def test_a_comfyui_file_counts_as_the_folder_it_was_made_from(prefix: str, transformer: Any, tmp_path: Path) -> None:
    """ComfyUI's names and alpha tensors, with each prefix, give the velocity of the PEFT folder."""
    expected = peft_folder(transformer, tmp_path / "peft", LORA)
    comfyui_file(tmp_path / "peft", tmp_path / "comfyui.safetensors", prefix)

    found = adapted(transformer, tmp_path / "comfyui.safetensors")

    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


def test_a_file_that_diffusers_saved_counts_as_in_peft(transformer: Any, tmp_path: Path) -> None:
    """AceStepPipeline.save_lora_weights keeps alpha in the file's metadata, from where it is read."""
    expected = peft_folder(transformer, tmp_path / "peft", LORA)
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    AceStepPipeline.save_lora_weights(
        tmp_path,
        transformer_lora_layers={name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()},
        transformer_lora_adapter_metadata={"r": LORA.r, "lora_alpha": LORA.lora_alpha},
    )

    found = adapted(transformer, tmp_path)

    torch.testing.assert_close(found, expected, rtol=0, atol=ROUNDING)


@pytest.mark.parametrize(
    "options",
    [
        {"algo": "lora", "linear_dim": 4, "linear_alpha": 4, "dora_wd": True},
        {"algo": "lokr", "linear_dim": 2, "linear_alpha": 1, "factor": 4},
    ],
    ids=str,
)
def test_an_adapter_plays_in_bfloat16(options: dict[str, Any], checkpoint: Path, tmp_path: Path) -> None:
    """A layer in bfloat16 stays in it, and is changed as in float32 up to bfloat16's rounding."""
    transformer = AceStepTransformer1DModel.from_pretrained(checkpoint / "transformer").eval().requires_grad_(False)
    lycoris_file(transformer, tmp_path / "one.safetensors", **options)
    layer = transformer.condition_embedder
    inputs = torch.randn(5, layer.in_features)
    exact = changed(transformer, layer, inputs, tmp_path / "one.safetensors")

    rounded = changed(transformer.bfloat16(), layer, inputs.bfloat16(), tmp_path / "one.safetensors")

    assert rounded.dtype == torch.bfloat16
    assert (rounded.float() - exact).norm() < 0.02 * exact.norm()


def test_adapters_add_up_and_a_scale_multiplies_a_change(transformer: Any, tmp_path: Path) -> None:
    """Two adapters of one layer at once change its output by the sum of their changes, each times its scale."""
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["condition_embedder"], use_dora=True)
    for name, seed in (("one", 1), ("other", 2)):
        peft_folder(transformer, tmp_path / name, config, seed)
    layer = transformer.condition_embedder
    inputs = torch.randn(5, layer.in_features)
    adapters = adapters_of(transformer, tmp_path)

    def change(scales: dict[str, float | None]) -> torch.Tensor:
        blend = adapters.blend(scales)
        assert blend is not None
        with blend.applied(transformer), torch.no_grad():
            changed: torch.Tensor = layer(inputs) - plain
        return changed

    plain = layer(inputs).detach()
    one = change({"one": 1.0})
    other = change({"other": None})

    torch.testing.assert_close(change({"one": 0.5, "other": -2.0}), 0.5 * one - 2 * other, rtol=0, atol=ROUNDING)
    assert one.abs().max() > LEAST_EFFECT
    assert adapters.blend({"one": 0.0, "other": 0.0}) is None


def test_an_adapter_for_another_base_model_is_refused(transformer: Any, tmp_path: Path) -> None:
    """The message names the first layer that does not fit, with both shapes, or that does not exist."""
    peft_folder(transformer, tmp_path, LORA)
    file = tmp_path / WEIGHTS
    layer = "base_model.model.layers.0.self_attn.q_proj"
    edit_tensors(file, lambda found: found | {f"{layer}.lora_A.weight": torch.zeros(LORA.r, 80)})

    with pytest.raises(BadAdapter) as wider:
        adapted(transformer, tmp_path)
    rename(file, lambda name: name.replace(".layers.0.self_attn.q", ".layers.30.self_attn.q"))
    with pytest.raises(BadAdapter) as deeper:
        adapted(transformer, tmp_path)

    expected = (
        f"1 layer of 32 does not fit, the first is {layer}, whose weight has the shape 64×64 here and 64×80 there."
    )
    assert wider.value.message.endswith(expected)
    assert deeper.value.message.endswith(
        "does not fit, the first is base_model.model.layers.30.self_attn.q_proj, which this model does not have."
    )
    failure_codes.provoked(
        "bad_adapter", "an adapter of a larger model", wider.value.message.replace(str(tmp_path), "…")
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: (folder / "adapter_config.json").unlink(), "Without it the adapter's strength (alpha) is unknown"),
        (lambda folder: (folder / "adapter_config.json").write_text("{"), "adapter_config.json cannot be read"),
        (lambda folder: edit(folder / "adapter_config.json", {"lora_alpha": "much"}), "adapter_config.json cannot be read"),
        (lambda folder: edit(folder / "adapter_config.json", {"r": 0}), "the rank is 0, and must be at least 1"),
        (lambda folder: edit(folder / "adapter_config.json", {"alpha_pattern": {"q_proj[": 8}}), "'q_proj['"),
        (lambda folder: edit(folder / "adapter_config.json", {"alpha_pattern": {"((.*)*)*(x+x+)+y": 8}}), "repeats too much"),
        (lambda folder: edit(folder / "adapter_config.json", {"rank_pattern": {"(q|k)_proj": 8}}), "has more than names,"),
        (lambda folder: edit(folder / "adapter_config.json", {"peft_type": "LOHA"}), "of the type LOHA. Sophia reads LoRA,"),
        (lambda folder: truncate(folder), "is truncated or not a safetensors file"),
        (lambda folder: (folder / WEIGHTS).rename(folder / "adapter_model.bin"), "has no .safetensors file. Sophia reads no other"),
        (lambda folder: shutil.rmtree(folder), "does not exist on this node"),
        (lambda folder: split(folder), "has 2 .safetensors files. Set `file` to one of them: a.safetensors, b.safetensors."),
        (lambda folder: edit_tensors(folder / WEIGHTS, lambda found: {}), "has no tensors"),
        (lambda folder: edit_tensors(folder / WEIGHTS, without_up), "do not belong together: down 4×64."),
        (lambda folder: edit_tensors(folder / WEIGHTS, with_hada), "has the tensor layers.0.mlp.up_proj.hada_w1_a, which Sophia"),
        (lambda folder: edit_tensors(folder / WEIGHTS, with_nan), "has NaN or infinite values"),
        (lambda folder: edit_tensors(folder / WEIGHTS, as_complex), "has the type torch.complex64, which is no kind of weight"),
        (lambda folder: edit_tensors(folder / WEIGHTS, with_magnitude), "do not belong together: down 4×64, magnitude 7, up 64×4."),
    ],
)  # fmt: skip
def test_a_broken_adapter_is_refused(change: Any, message: str, transformer: Any, tmp_path: Path) -> None:
    """Each error names the adapter and what is wrong with it."""
    peft_folder(transformer, tmp_path / "broken", LORA)
    change(tmp_path / "broken")

    with pytest.raises(BadAdapter) as refused:
        adapted(transformer, tmp_path / "broken")

    assert message in refused.value.message
    assert refused.value.message.startswith("The adapter a cannot be used: ")


def test_an_adapter_that_is_gone_is_refused(transformer: Any, tmp_path: Path) -> None:
    """The message lists the adapters that there are."""
    peft_folder(transformer, tmp_path / "one", LORA)

    with pytest.raises(BadAdapter) as refused:
        adapters_of(transformer, tmp_path).blend({"other": 1.0})

    assert refused.value.message == "The adapter other no longer exists. The model's adapters are: one."


def test_memory_is_bounded_and_the_last_adapters_stay(transformer: Any, tmp_path: Path) -> None:
    """Twenty adapters in turn, twice, keep as many in memory as the bound allows."""
    for i in range(20):
        peft_folder(transformer, tmp_path / str(i), LORA, seed=i)
    adapters = adapters_of(transformer, tmp_path, capacity=3 * sizes_of(tmp_path / "0"))

    sizes = []
    for i in [*range(20), *range(20)]:
        adapters.blend({str(i): 1.0})
        sizes.append(adapters.memory.size)

    assert max(sizes) == 3 * sizes[0]
    assert set(sizes[2:]) == {3 * sizes[0]}


def test_a_file_that_was_replaced_is_read_again(transformer: Any, tmp_path: Path) -> None:
    """The same adapter is the same object while its file stays, and another one after the file has changed."""
    peft_folder(transformer, tmp_path / "one", LORA)
    adapters = adapters_of(transformer, tmp_path)
    first = adapters.blend({"one": 1.0})

    again = adapters.blend({"one": 1.0})
    shutil.rmtree(tmp_path / "one")
    peft_folder(transformer, tmp_path / "one", LORA, seed=1)
    replaced = adapters.blend({"one": 1.0})

    assert first is again
    assert replaced is not first


def truncate(folder: Path) -> None:
    content = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(content[:-100])


def split(folder: Path) -> None:
    shutil.copy(folder / WEIGHTS, folder / "a.safetensors")
    (folder / WEIGHTS).rename(folder / "b.safetensors")


def without_up(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in tensors.items() if "lora_B" not in name}


def with_hada(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {"layers.0.mlp.up_proj.hada_w1_a": torch.zeros(4, 4)}


def with_nan(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor / 0 for name, tensor in tensors.items()}


def as_complex(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.to(torch.complex64) for name, tensor in tensors.items()}


def with_magnitude(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return tensors | {"base_model.model.layers.0.self_attn.q_proj.lora_magnitude_vector": torch.ones(7)}


def local_file(name: str, args: AdapterArgs, report: weights.Report) -> Path:
    return weights.adapter_file("m", name, args, Path("/nowhere"), report)


def sizes_of(folder: Path) -> int:
    """Bytes of the tensors of a PEFT folder."""
    return sum(tensor.nbytes for tensor in load_file(folder / WEIGHTS).values())


def adapters_of(transformer: Any, folder: Path, capacity: int = 1 << 30) -> Adapters:
    """The adapters in `folder`, named after their own folders."""
    known = {path.name: AdapterArgs(source=str(path)) for path in folder.iterdir()}
    return Adapters(transformer, lambda: known, local_file, capacity)


def changed(transformer: Any, layer: Any, inputs: torch.Tensor, source: Path) -> torch.Tensor:
    """The output of a layer with one adapter."""
    with blend_of(transformer, source).applied(transformer), torch.no_grad():
        output: torch.Tensor = layer(inputs)
    return output


def adapted(transformer: Any, source: Path) -> torch.Tensor:
    """The velocity with one adapter."""
    with blend_of(transformer, source).applied(transformer):
        return velocity(transformer)


def blend_of(transformer: Any, source: Path) -> Blend:
    """One adapter, at its full strength."""
    known = {"a": AdapterArgs(source=str(source))}
    blend = Adapters(transformer, lambda: known, local_file, 1 << 30).blend({"a": 1.0})
    assert blend is not None
    return blend

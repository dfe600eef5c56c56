"""Checkpoints in other layouts that cannot be converted: the error names the file, the tensor and what to do."""

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from serve_app import errors, weights
from serve_app.config import ModelArgs
from tests.support.layouts import (
    ORIGINAL_CONFIG,
    Weights,
    make_all_in_one,
    make_original,
    make_parts,
    make_split_files,
)

MODEL = "acestep-v15-turbo/model.safetensors"
SILENCE = "acestep-v15-turbo/silence_latent.pt"


@pytest.fixture
def original(checkpoint: Path, tmp_path: Path) -> Path:
    """A checkpoint in ACE-Step's layout, which a test may break."""
    return make_original(checkpoint, tmp_path / "original")


def _convert(source: Path, **settings: str) -> None:
    weights.resolve("m", ModelArgs(source=str(source), **settings), source.parent / "cache", lambda *report: None)


def _without_a_tensor(tensors: Weights) -> None:
    del tensors["decoder.layers.2.cross_attn.v_proj.weight"]


def _without_the_audio_codes(tensors: Weights) -> None:
    del tensors["tokenizer.quantizer.project_out.bias"]


def _another_shape(tensors: Weights) -> None:
    tensors["encoder.lyric_encoder.layers.1.mlp.up_proj.weight"] = torch.zeros(128, 65)


def _quantised(tensors: Weights) -> None:
    tensors["decoder.layers.0.mlp.up_proj.weight"] = torch.zeros(128, 64).to(torch.float8_e4m3fn)


def _no_numbers(tensors: Weights) -> None:
    tensors["decoder.proj_in.1.weight"] = torch.zeros(64, 192)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (
            _without_a_tensor,
            rf"{MODEL} of .*/original lacks 1 of the 96 tensors of transformer: layers\.2\.cross_attn\.to_v\.weight\. ",
        ),
        (_without_the_audio_codes, r"lacks 1 of the 21 tensors of audio_tokenizer: quantizer\.project_out\.bias\. "),
        (
            _another_shape,
            r"1 tensors of condition_encoder with another shape: lyric_encoder\.layers\.1\.mlp\.up_proj\.weight \[128, 65\] "
            r"instead of \[128, 64\]",
        ),
        (_quantised, r"1 quantised tensors of transformer: layers\.0\.mlp\.up_proj\.weight \(F8_E4M3\)\. .*bf16 file"),
        (_no_numbers, r"proj_in_conv\.weight has the shape \[64, 192\], not 3 dimensions"),
    ],
    ids=["a layer's", "the audio codes'", "another shape", "quantised", "another dimension"],
)
def test_wrong_tensors_are_named(spoil: Callable[[Weights], None], message: str, original: Path) -> None:
    """A tensor that is missing, has another shape or is quantised is named before anything is written."""
    tensors = load_file(original / MODEL)
    spoil(tensors)
    save_file(tensors, original / MODEL)

    with pytest.raises(errors.WrongTensors, match=message):
        _convert(original)

    assert not list((original.parent / "cache").rglob("*.safetensors*"))


def test_a_missing_shard_is_named(checkpoint: Path, tmp_path: Path) -> None:
    """A shard that its neighbours' names imply is missed by its number."""
    source = make_original(checkpoint, tmp_path / "original", shards=3)
    (source / "acestep-v15-turbo" / "model-00002-of-00003.safetensors").unlink()

    with pytest.raises(errors.MissingFile, match=r"shards 2 of 3 are missing beside .*model-00001-of-00003"):
        _convert(source)


@pytest.mark.parametrize(
    "content", [b"", b"\x01\x02", b"\xff" * 64, b"<!DOCTYPE html>" * 20, b"\x02" + bytes(7) + b"[]"]
)
def test_a_weight_file_that_is_something_else_is_named(content: bytes, original: Path) -> None:
    """An empty file, garbage or an error page in place of the weights is refused with the file's name."""
    (original / MODEL).write_bytes(content)

    with pytest.raises(errors.CorruptFile, match=rf"{MODEL} of .*/original"):
        _convert(original)


def test_a_truncated_weight_file_is_found_by_its_header(original: Path) -> None:
    """A weight file that lacks its last byte is refused before it is read."""
    with (original / MODEL).open("r+b") as stream:
        stream.truncate((original / MODEL).stat().st_size - 1)

    with pytest.raises(errors.CorruptFile, match=rf"{MODEL} .*is not a safetensors file \(the bytes \d+ to \d+ of "):
        _convert(original)


def test_damaged_headers_are_refused_by_name(original: Path) -> None:
    """Whatever a few wrong bytes make of a header, the error is one of ours and names the file."""
    good = (original / MODEL).read_bytes()
    end = 8 + int.from_bytes(good[:8], "little")
    random = Random(1)
    for _ in range(100):
        damaged = bytearray(good)
        for at in random.sample(range(end), random.choice([1, 2, 5])):
            damaged[at] = random.choice([damaged[at] ^ 1 << random.randrange(8), ord("9"), ord("-")])
        (original / MODEL).write_bytes(damaged)
        if damaged == good:
            continue

        with pytest.raises((errors.CorruptFile, errors.WrongTensors), match=MODEL):
            _convert(original)


# --- silence_latent.pt ----------------------------------------------------------------------------------------------


class _Code:
    """What runs a command where it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self._trace = trace

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self._trace,))


def _saved(value: object) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream)
    return stream.getvalue()


def test_a_silence_file_with_code_is_refused_and_not_run(original: Path, tmp_path: Path) -> None:
    """A pickle that would run code, in torch's archive or bare, is refused by the file's name and does not run."""
    trace = tmp_path / "trace"

    for content in (_saved(_Code(trace)), pickle.dumps(_Code(trace))):
        (original / SILENCE).write_bytes(content)
        with pytest.raises(errors.CorruptFile, match=rf"{SILENCE} of .*Use the silence_latent\.pt of ACE-Step"):
            _convert(original)

    assert not trace.exists()
    pickle.loads(pickle.dumps(_Code(trace)))  # noqa: S301 - the pickle does run code where it is loaded carelessly
    assert trace.exists()


def _bomb() -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(200_000_000))
    return stream.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_saved(torch.zeros(1, 64, 10).to(torch.int32)), r"holds torch\.int32 \[1, 64, 10\], not a float tensor"),
        (_saved(torch.zeros(1, 15000, 64)), r"holds torch\.float32 \[1, 15000, 64\], not a float tensor"),
        (_saved({"a": torch.zeros(1)}), "holds dict, not a float tensor"),
        (_saved(torch.zeros(1, 64, 1).expand(1, 64, 10**9)), "which is too large"),
        (_bomb(), r"unpacks to 200000000 bytes in 1 entries; at most 67108864 in 64 are read"),
        (b"not a zip", "is not a zip archive"),
        (bytes((64 << 20) + 1), r"has 67108865 bytes; at most 67108864 are read"),
    ],
    ids=["integers", "transposed", "a dictionary", "an expanded view", "a zip bomb", "text", "a large file"],
)
def test_a_silence_file_that_is_something_else_is_refused(content: bytes, message: str, original: Path) -> None:
    """Anything but one tensor of the right shape in a small archive is refused by what it is."""
    (original / SILENCE).write_bytes(content)

    with pytest.raises(errors.CorruptFile, match=rf"{SILENCE} of .*{message}"):
        _convert(original)


def test_silence_of_another_length_is_refused(original: Path) -> None:
    """Latents of silence that are shorter than diffusers' buffer are a wrong shape of that tensor."""
    torch.save(torch.zeros(1, 64, 750), original / SILENCE)

    with pytest.raises(errors.WrongTensors, match=r"silence_latent \[1, 750, 64\] instead of \[1, 15000, 64\]"):
        _convert(original)


# --- What is missing, and what is ambiguous -------------------------------------------------------------------------


def test_parts_that_nobody_has_are_named(checkpoint: Path, tmp_path: Path) -> None:
    """What neither the source nor `parts_from` has is named, with the setting."""
    source = make_split_files(checkpoint, tmp_path / "comfyui")
    parts = make_parts(checkpoint, tmp_path / "parts")
    (source / "vae" / "ace_1.5_vae.safetensors").unlink()

    with pytest.raises(
        errors.MissingFile, match=r"lacks the VAE, and .*/parts \(`parts_from`\) does not have it either"
    ):
        _convert(source, parts_from=str(parts))
    with pytest.raises(errors.MissingFile, match=r"models\.m\.parts_from: the folder .*/nowhere does not exist"):
        _convert(source, parts_from=str(tmp_path / "nowhere"))


def test_a_diffusion_model_that_the_source_lacks_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """`dit` must name one of the source's diffusion models; the error lists them."""
    source = make_split_files(checkpoint, tmp_path / "comfyui")

    with pytest.raises(errors.WrongLayout, match=r"models\.m\.dit: .* no diffusion model 'x'. It has .*v1\.5_turbo"):
        _convert(source, dit="x")


def test_a_name_that_does_not_tell_the_variant_needs_the_setting(checkpoint: Path, tmp_path: Path) -> None:
    """A file without a configuration whose name says no variant is refused until `variant` is set."""
    source = make_all_in_one(checkpoint, tmp_path / "comfyui")
    parts = str(make_parts(checkpoint, tmp_path / "parts"))
    file = source / "checkpoints" / "ace_step_1.5_turbo_aio.safetensors"
    file.rename(file.with_name("my_ace_step_1.5.safetensors"))

    with pytest.raises(errors.WrongLayout, match=r"my_ace_step_1\.5\.safetensors .*Set the model's `variant`"):
        _convert(source, parts_from=parts)
    _convert(source, parts_from=parts, variant="base")

    [made] = (tmp_path / "cache").rglob("transformer/config.json")
    assert json.loads(made.read_text())["model_version"] == "base"


def test_a_configuration_that_contradicts_the_tensors_is_refused(checkpoint: Path, tmp_path: Path) -> None:
    """A checkpoint whose last layers are missing is noticed where the configuration counts them."""
    source = make_original(checkpoint, tmp_path / "original", config=ORIGINAL_CONFIG | {"num_hidden_layers": 24})

    with pytest.raises(errors.WrongTensors, match=r"has 4 layers of transformer, but its configuration says 24"):
        _convert(source)

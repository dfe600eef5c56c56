"""Audio codes of our pipeline's quantizer (diffusers' own) beside those of the reference, vector_quantize_pytorch.

Compared in float32 and outside of training: codes as indices, the vectors they stand for, and that one's weights fit the other.
Not compared: bfloat16, in which diffusers goes on computing in float32 and the reference does not; the indices' integer type
(int64 here, int32 there); what lies around the quantizer (attention pooler, detokenizer), of which the reference has nothing.
"""

from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(params=[1, 2], ids=["one quantizer, as released", "a residual one as well"])
def quantizers(request: pytest.FixtureRequest, checkpoint: Path) -> tuple[Any, Any]:
    """The pipeline's quantizer and the reference with the same weights."""
    from diffusers.pipelines.ace_step import AceStepAudioTokenizer
    from vector_quantize_pytorch import ResidualFSQ

    tokenizer = AceStepAudioTokenizer.from_pretrained(
        checkpoint / "audio_tokenizer", fsq_input_num_quantizers=request.param
    ).eval()
    reference = ResidualFSQ(
        dim=tokenizer.config.fsq_dim, levels=tokenizer.config.fsq_input_levels, num_quantizers=request.param
    ).eval()
    reference.load_state_dict(tokenizer.quantizer.state_dict())
    return tokenizer.quantizer, reference


@torch.inference_mode()
def test_every_code_stands_for_the_same_vector(quantizers: tuple[Any, Any]) -> None:
    """All 64,000 indices decode to the reference's vectors, all of them different."""
    ours, reference = quantizers
    ascending = torch.arange(ours.codebook_size)
    indices = torch.stack([ascending, ascending.flip(0)], dim=-1)[None, :, : ours.num_quantizers]

    vectors = ours.get_output_from_indices(indices)

    assert ours.codebook_size == reference.codebook_size == 64_000
    assert len(ours.get_codes_from_indices(indices)[0, 0].unique(dim=0)) == 64_000
    torch.testing.assert_close(vectors, reference.get_output_from_indices(indices))


@torch.inference_mode()
def test_sound_gets_the_same_codes(quantizers: tuple[Any, Any]) -> None:
    """Vectors from silence to far beyond the clamp get the reference's indices and vectors."""
    ours, reference = quantizers
    loudness = torch.logspace(-2, 2, 5000)[:, None]
    latents = (torch.randn(5000, 64, generator=torch.Generator().manual_seed(0)) * loudness)[None]

    vectors, indices = ours(latents)

    expected_vectors, expected_indices = reference(latents)
    assert indices.unique().numel() > 500
    assert torch.equal(indices, expected_indices.long())
    torch.testing.assert_close(vectors, expected_vectors)

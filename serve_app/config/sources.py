"""The values of a model's `source` that name no place, and what such a model is."""

from collections.abc import Mapping
from typing import Final

EMBEDDED: Final = "embedded"
EMBEDDED_BASE: Final = "embedded-base"
RANDOM: Final = "random"
SIMULATED: Final = "simulated"

PACKAGED: Final = (EMBEDDED, EMBEDDED_BASE)
"""Sources of checkpoints that are package data: the toy model's turbo and base variants."""

BUILT_IN: Final = (*PACKAGED, RANDOM)
"""Sources of checkpoints that come with Sophia, so that nothing is downloaded for them."""

NOISE: Final = "random weights that generate noise"
"""What a checkpoint with random weights is, whatever its source."""

TOY: Final = "a toy model trained on synthetic music: six instruments, bass, drums and a simple voice, in 24 keys"
"""What the embedded checkpoint is."""

NOTES: Final[Mapping[str, str]] = {
    EMBEDDED: TOY,
    EMBEDDED_BASE: TOY,
    RANDOM: NOISE,
    SIMULATED: "a simulation that generates test tones",
}
"""What a model with this source is, as the end of a sentence that begins with the model's name and "is"."""

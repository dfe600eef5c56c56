"""The values of a model's `source` that name no place, and what such a model is."""

import difflib
from collections.abc import Mapping, Sequence
from typing import Final

AUTO: Final = "auto"
EMBEDDED: Final = "embedded"
EMBEDDED_BASE: Final = "embedded-base"
RANDOM: Final = "random"
SIMULATED: Final = "simulated"

PACKAGED: Final = (EMBEDDED, EMBEDDED_BASE)
"""Sources of checkpoints that are package data: the toy model's turbo and base variants."""

BUILT_IN: Final = (*PACKAGED, RANDOM)
"""Sources of checkpoints that come with Sophia, so that nothing is downloaded for them."""

WORDS: Final = (AUTO, *BUILT_IN, SIMULATED)
"""Every value of `source` that names no place."""

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


def checked_source(source: str, words: Sequence[str] = ()) -> str:
    """The given source, if it is one of `words` or may name a place. Raises ValueError, which does not repeat it."""
    if source in words or "/" in source or source.startswith("~"):
        return source
    similar = difflib.get_close_matches(source.lower(), words, n=1)
    meant = f"; did you mean {similar[0]!r}?" if similar else ""
    first = f"{', '.join(map(repr, words))}, " if words else ""
    raise ValueError(
        f"must be {first}a Hugging Face repository id such as 'ACE-Step/Ace-Step1.5' (owner/name), an object store such as "
        f"'s3://bucket/prefix', or an absolute path{meant}"
    )

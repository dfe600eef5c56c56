"""The language model of a planner: where it comes from, and how it is loaded."""

from typing import Annotated, Literal

from pydantic import Field

from serve_app.config.section import Section


class LanguageModelArgs(Section):
    """Where a planner's language model comes from, and how many songs it plans at once."""

    source: str = Field(
        "none",
        min_length=1,
        description="Where the language model comes from: a Hugging Face repository id such as `ACE-Step/acestep-5Hz-lm-0.6B`; an "
        "object store (`s3://bucket/prefix`, `gs://…`, `az://…`); a local folder; `embedded` (the toy model's, which comes "
        "with Sophia); `random` (random weights, whose plans mean nothing; tests only); `simulated` (sleeps; tests only); or "
        "`none`.",
    )
    folder: str | None = Field(
        None,
        min_length=1,
        description="Which folder of the source holds the language model, if several do: `acestep-5Hz-lm-1.7B`.",
    )
    revision: str | None = Field(
        None, description="The repository's commit, tag or branch. Pin a commit in production."
    )
    dtype: Literal["auto", "bfloat16", "float32"] = Field(
        "auto", description="`bfloat16`, `float32`, or `auto`: bfloat16 on CUDA, float32 on the CPU."
    )
    rows: Literal["auto"] | Annotated[int, Field(ge=2, le=256)] = Field(
        "auto",
        description="How many sequences are decoded at once; a song with guidance takes two. Each needs memory for `context` "
        "tokens. `auto`: as many as fit in half of the memory that is free after the weights, from 2 to 32.",
    )
    context: int = Field(
        4096,
        ge=512,
        le=32_768,
        description="The longest sequence in tokens: prompt, lyrics and five audio codes for each second of music.",
    )
    cuda_graphs: bool = Field(
        False,
        description="Whether the steps of decoding on CUDA are recorded once for each number of rows and replayed, which saves the "
        "launch of each kernel. Not checked on a device yet.",
    )

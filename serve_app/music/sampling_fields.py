"""The fields of a request that say how the song is sampled: the way from noise to music."""

from typing import Annotated

from pydantic import BaseModel, Field

from serve_app.music.vocabulary import MAX_SEED, DcwMode, GuidanceMode, Sampler


class SamplingFields(BaseModel):
    """How the song is sampled. A field that is left out has the default of the model's variant."""

    steps: int | None = Field(
        None,
        ge=1,
        le=200,
        description="Number of denoising steps, from 1 to 200. Generation time grows with it. Default: 8 for turbo models, 50 for "
        "base and sft models.",
        examples=[8],
    )
    guidance_scale: float | None = Field(
        None,
        ge=1,
        le=30,
        description="Strength of classifier-free guidance, from 1 (none) to 30. The higher it is, the more closely the song "
        "follows the prompt. Default: 7 for base and sft models. Turbo models ignore it, and the job's `warnings` report that.",
        examples=[7.0],
    )
    shift: float | None = Field(
        None,
        ge=0.1,
        le=10,
        description="Shift of the timestep schedule, from 0.1 to 10. Above 1, more steps shape the song's structure and fewer "
        "its details. Default: 3 for turbo models, 1 for base and sft models.",
        examples=[3.0],
    )
    cfg_interval_start: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Noise level below which guidance is not applied, from 0 to 1. Default: 0. The noise level falls from 1 to 0 "
        "during denoising, as in ACE-Step.",
        examples=[0.0],
    )
    cfg_interval_end: float = Field(
        1.0,
        ge=0,
        le=1,
        description="Noise level above which guidance is not applied, from 0 to 1. Default: 1. If it is less than "
        "`cfg_interval_start`, guidance is never applied.",
        examples=[1.0],
    )
    guidance_mode: GuidanceMode = Field(
        "apg",
        description="Kind of guidance: apg (adaptive projected, the original's), cfg (plain), or angle-based: adg, adg_w_norm "
        "(keeps the loudness of the unguided song) and adg_wo_clip (turns without a limit). Default: apg. Turbo models ignore it.",
        examples=["apg"],
    )
    sampler: Sampler = Field(
        "euler",
        description="How a step is taken: euler, heun (twice the time, more exact) or sde (adds fresh noise after each step, which "
        "depends on the seed only). Default: euler.",
        examples=["euler"],
    )
    timesteps: list[Annotated[float, Field(ge=0, le=1)]] | None = Field(
        None,
        min_length=1,
        max_length=200,
        description="The noise levels at which steps start, from 1 (noise) to 0 (music); they are taken in falling order, each "
        "once, and 0 is left out. They replace `steps` and `shift`. Turbo models take the first 20, each moved to the nearest "
        "level that they were trained for; the job's `warnings` report that.",
        examples=[[1.0, 0.75, 0.5, 0.25]],
    )
    retake_variance: float = Field(
        0.0,
        ge=0,
        le=1,
        description="How much of the noise of `retake_seed` is mixed into the noise of `seed`. 0 gives the song of `seed`, 1 "
        "that of `retake_seed`, and small values give songs like that of `seed`. Default: 0.",
        examples=[0.2],
    )
    retake_seed: int | None = Field(
        None,
        ge=-1,
        le=MAX_SEED,
        description="Seed of the noise that `retake_variance` mixes in. Variation i, counted from 0, uses `retake_seed` + i. "
        "Default, and for -1: a random seed, which the job's `request` contains.",
        examples=[8],
    )
    dcw: bool | None = Field(
        None,
        description="Whether each step is corrected in the wavelet domain (DCW). Default: yes for turbo models, no for base and "
        "sft models, as in the original, and for the packaged models.",
        examples=[True],
    )
    dcw_mode: DcwMode = Field(
        "double",
        description="What DCW corrects: low (slow changes), high (fast changes), double (both) or pix (everything, at each noise "
        "level alike). Default: double.",
        examples=["double"],
    )
    dcw_strength: float = Field(0.05, ge=0, le=1, description="Strength of DCW. Default: 0.05.", examples=[0.05])
    dcw_high_strength: float = Field(
        0.02,
        ge=0,
        le=1,
        description="Strength of DCW for fast changes in the mode double. Default: 0.02.",
        examples=[0.02],
    )

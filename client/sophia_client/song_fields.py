"""The fields of a song. `python -m tests.support.client_models` writes this file from the service's own classes."""

from pathlib import Path
from typing import Literal, Required, TypedDict

Format = Literal["mp3", "flac", "wav", "wav32", "ogg", "opus", "aac"]
TaskType = Literal["text2music", "cover", "cover-nofsq", "repaint", "extract", "lego", "complete", "stems", "edit"]
Track = Literal[
    "woodwinds",
    "brass",
    "fx",
    "synth",
    "strings",
    "percussion",
    "keyboard",
    "guitar",
    "bass",
    "drums",
    "backing_vocals",
    "vocals",
]
RepaintMode = Literal["conservative", "balanced", "aggressive"]
Sampler = Literal["euler", "heun", "sde"]
GuidanceMode = Literal["apg", "cfg", "adg", "adg_w_norm", "adg_wo_clip"]
DcwMode = Literal["low", "high", "double", "pix"]
ChunkMaskMode = Literal["auto", "explicit"]
Language = Literal[
    "ar",
    "az",
    "bg",
    "bn",
    "ca",
    "cs",
    "da",
    "de",
    "el",
    "en",
    "es",
    "fa",
    "fi",
    "fr",
    "he",
    "hi",
    "hr",
    "ht",
    "hu",
    "id",
    "is",
    "it",
    "ja",
    "ko",
    "la",
    "lt",
    "ms",
    "ne",
    "nl",
    "no",
    "pa",
    "pl",
    "pt",
    "ro",
    "ru",
    "sa",
    "sk",
    "sr",
    "sv",
    "sw",
    "ta",
    "te",
    "th",
    "tl",
    "tr",
    "uk",
    "ur",
    "vi",
    "yue",
    "zh",
    "unknown",
]


class LoraUse(TypedDict, total=False):
    """One adapter of a song, and how strongly it counts."""

    name: Required[str]
    """The adapter's name; GET /v1/models lists them."""
    scale: float | None
    """How strongly the adapter counts, from -10 to 10: 0 is not at all, 1 as it was trained. Default: the adapter's own,
    which is 1 unless the operator has set another; the job's `request` contains it.
    """


class GivenPlan(TypedDict, total=False):
    """A plan that a request brings: that of an earlier job, a written one, or an earlier one with changes."""

    job: str | None
    """`job:ID` takes the plan of one of your jobs. The fields beside it replace those of that plan."""
    caption: str | None
    """Instead of what the planner would choose, or the plan of `job` says."""
    lyrics: str | None
    """Instead of what the planner would choose, or the plan of `job` says."""
    bpm: int | None
    """Instead of what the planner would choose, or the plan of `job` says."""
    keyscale: str | None
    """Instead of what the planner would choose, or the plan of `job` says."""
    timesignature: Literal["2", "3", "4", "6"] | None
    """Instead of what the planner would choose, or the plan of `job` says."""
    duration: float | Literal["auto"] | None
    """Length in seconds. With `codes`, five of them are one second."""
    language: Language | None
    """Language of the lyrics."""
    instrumental: bool | None
    """Whether nothing is sung."""
    codes: list[list[int]] | None
    """The audio codes of each song, five a second, from 0 to 63,999; also as ACE-Step's text
    `<|audio_code_N|><|audio_code_M|>…`. Without them, or with an empty list, `thinking: codes` plans them.
    """
    seed: int | None
    """The `plan_seed` that the plan was made with."""


class SongFields(TypedDict, total=False):
    """What a song may have besides its prompt. The service checks the values and fills in the defaults."""

    title: str | None
    """Title for the file's name and tags. It has no effect on the music. Default: the start of the prompt."""
    lyrics: str
    """Lyrics to sing, with section tags such as [verse] and [chorus]. Leave it empty, or send [Instrumental], for music
    without vocals. The model reads the first 2048 tokens.
    """
    duration: float | Literal["auto"]
    """Length of the song in seconds, from 1 to 600. Default: 60. With `auto` the planner decides if the song is planned
    (see `auto_duration`); else the length is estimated from the lyrics, the tempo and the time signature (120 without
    lyrics), and the job's `request` contains the result. With `audio_codes`, they decide unless a length is given. For
    a task with a source, the source decides instead, and the job's `warnings` report another length that was given.
    """
    variations: int
    """Number of variations to generate, from 1 to 8. Default: 1. Variation i, counted from 0, uses the seed `seed` + i;
    seed 0 follows the largest seed.
    """
    seed: int | None
    """Seed of the random noise that generation starts from. The same request with the same seed gives the same song.
    Default, and for -1: a random seed, which the job's `request` contains.
    """
    format: Format
    """File format: mp3 (VBR), flac, wav (16-bit), wav32 (32-bit float), ogg (Vorbis), opus or aac (m4a). Default: mp3.
    Every file is stereo at 48 kHz.
    """
    bpm: int | None
    """Tempo in beats per minute, from 30 to 300. Default: the model chooses."""
    keyscale: str | None
    """Key, such as `C major` or `F# minor`. Default: the model chooses."""
    timesignature: Literal["2", "3", "4", "6"] | None
    """Beats per bar: 2 (2/4), 3 (3/4), 4 (4/4) or 6 (6/8). Default: the model chooses."""
    vocal_language: Language
    """Language of the lyrics, as an ISO 639 code. Default: en."""
    fade_in: float
    """Seconds over which the song fades in, from 0 to 60. Default: 0."""
    fade_out: float
    """Seconds over which the song fades out, from 0 to 60. Default: 0."""
    steps: int | None
    """Number of denoising steps, from 1 to 200. Generation time grows with it. Default: 8 for turbo models, 50 for base
    and sft models.
    """
    guidance_scale: float | None
    """Strength of classifier-free guidance, from 1 (none) to 30. The higher it is, the more closely the song follows the
    prompt. Default: 7 for base and sft models. Turbo models ignore it, and the job's `warnings` report that.
    """
    shift: float | None
    """Shift of the timestep schedule, from 0.1 to 10. Above 1, more steps shape the song's structure and fewer its
    details. Default: 3 for turbo models, 1 for base and sft models.
    """
    cfg_interval_start: float
    """Noise level below which guidance is not applied, from 0 to 1. Default: 0. The noise level falls from 1 to 0 during
    denoising, as in ACE-Step.
    """
    cfg_interval_end: float
    """Noise level above which guidance is not applied, from 0 to 1. Default: 1. If it is less than `cfg_interval_start`,
    guidance is never applied.
    """
    guidance_mode: GuidanceMode
    """Kind of guidance: apg (adaptive projected, the original's), cfg (plain), or angle-based: adg, adg_w_norm (keeps the
    loudness of the unguided song) and adg_wo_clip (turns without a limit). Default: apg. Turbo models ignore it.
    """
    sampler: Sampler
    """How a step is taken: euler, heun (twice the time, more exact) or sde (adds fresh noise after each step, which
    depends on the seed only). Default: euler.
    """
    timesteps: list[float] | None
    """The noise levels at which steps start, from 1 (noise) to 0 (music); they are taken in falling order, each once, and
    0 is left out. They replace `steps` and `shift`. Turbo models take the first 20, each moved to the nearest level
    that they were trained for; the job's `warnings` report that.
    """
    retake_variance: float
    """How much of the noise of `retake_seed` is mixed into the noise of `seed`. 0 gives the song of `seed`, 1 that of
    `retake_seed`, and small values give songs like that of `seed`. Default: 0.
    """
    retake_seed: int | None
    """Seed of the noise that `retake_variance` mixes in. Variation i, counted from 0, uses `retake_seed` + i. Default,
    and for -1: a random seed, which the job's `request` contains.
    """
    dcw: bool | None
    """Whether each step is corrected in the wavelet domain (DCW). Default: yes for turbo models, no for base and sft
    models, as in the original, and for the packaged models.
    """
    dcw_mode: DcwMode
    """What DCW corrects: low (slow changes), high (fast changes), double (both) or pix (everything, at each noise level
    alike). Default: double.
    """
    dcw_strength: float
    """Strength of DCW. Default: 0.05."""
    dcw_high_strength: float
    """Strength of DCW for fast changes in the mode double. Default: 0.02."""
    task_type: TaskType
    """Kind of generation. text2music makes a song from words. The others make one from `source`: cover (the same music
    played in another way), cover-nofsq (the same, nearer to the source), repaint (a part of it anew, or more before or
    after it), with base and sft models edit (the same with other words, see `source_prompt`) and, with base models,
    extract (one track of it), lego (one track to it), complete (more tracks to it) and stems (each of its tracks in a
    file). A song from a source is as long as the source. GET /v1/models lists each model's tasks.
    """
    repaint_start: float | None
    """Where the part to repaint starts, in seconds of the source; for lego, where the track plays. Default: at its start."""
    repaint_end: float | None
    """Where the part to repaint ends, in seconds of the source. Default: at its end."""
    repaint_mode: RepaintMode
    """How strongly the new part is bound to the rest: conservative, balanced (as `repaint_strength` says) or aggressive
    (not at all). In every mode, the samples outside the part are those of the source. Default: balanced.
    """
    repaint_strength: float
    """For repaint_mode balanced: from 0 (as conservative) to 1 (as aggressive). Default: 0.5."""
    extend_before: float
    """For repaint: seconds to add before the source, rounded to 0.04. Default: 0."""
    extend_after: float
    """For repaint: seconds to add after the source. Default: 0. If a request extends and has neither repaint_start nor
    repaint_end, the whole source is kept.
    """
    cover_strength: float
    """Share of the steps, from the first on, in which the model hears the source (or the audio codes); in the rest it
    continues from the words alone. Default: 1.
    """
    cover_noise_strength: float
    """For covers: how much of the source is in what sampling starts from. 0 starts from noise, 1 nearly from the source.
    Default: 0.
    """
    track: Track | None
    """The track that extract takes out, or that lego adds. Default: the model chooses."""
    tracks: list[Track] | None
    """The tracks that complete adds (default: the model chooses), or that stems takes out (default: all)."""
    audio_codes: list[int] | str | None
    """For text2music: the song's audio codes, five for each second, of which the model makes a cover. GET
    /v1/jobs/{id}/codes has those of an earlier song. Also as ACE-Step's text, `<|audio_code_N|><|audio_code_M|>…`.
    Without `duration`, or with `auto`, the song is as long as its codes, and at least one second. If it is shorter,
    the remaining codes are ignored; if it is longer, it ends in silence.
    """
    chunk_mask_mode: ChunkMaskMode | None
    """How the model is told which frames are new: explicit (1 for new, 0 for kept) or auto (2 for all: the model
    decides). Default: explicit where a part is named and for the packaged models, else auto, as in the original.
    """
    source_prompt: str | None
    """For edit: what the source sounds like, as a prompt. `prompt` says what it becomes. Default: as `prompt`, so that
    only the lyrics change.
    """
    source_lyrics: str | None
    """For edit: the lyrics of the source. `lyrics` says what is sung instead. Default: as `lyrics`."""
    edit_start: float
    """For edit: the share of the steps to skip at the start, from 0 to 1. The more are skipped, the closer the song stays
    to its source. Default: 0.
    """
    edit_end: float
    """For edit: the share of the steps after which editing ends. The rest is sampled with the new words alone, which
    follows them more closely. Default: 1.
    """
    edit_draws: int
    """For edit: how many times each step is computed, each time with different noise, and averaged. More draws make the
    edit steadier and take that much longer. Each draw counts as a song in limits and costs, so `edit_draws` times
    `variations` must be at most 8. Default: 1.
    """
    lora: list[LoraUse]
    """Adapters (LoRA, LoKr or DoRA) that change how the model plays, at most 8; their changes add up. An adapter's name
    alone means the object with this `name` and the default scale. Default: none.
    """
    source: str | Path | None
    """The recording to change, for every task but text2music: `input:ID` for a recording uploaded with POST /v1/inputs,
    `job:ID/N` for song N (from 0) of one of your jobs, or an https:// address, which is fetched now and replaced by an
    `input:`.
    """
    reference: str | Path | None
    """A recording whose sound the song imitates, its voice and instruments: `input:ID` for a recording uploaded with POST
    /v1/inputs, `job:ID/N` for song N (from 0) of one of your jobs, or an https:// address, which is fetched now and
    replaced by an `input:`.
    """
    voice: str | None
    """One of your voices (POST /v1/voices). Its recording becomes the `reference`, which the job's `request` shows:
    changing or deleting the voice later does not change the job.
    """
    keep_latents: bool
    """Whether the song's latents are kept beside its audio, so that a later job with the song as its `source` starts from
    them instead of from the decoded file, and its audio codes, which GET /v1/jobs/{job_id}/codes returns. Default:
    true, unless the operator has switched it off.
    """
    lyrics_timing: bool
    """Whether to find when each line and word of the lyrics is sung; GET /v1/jobs/{id}/lyrics has the result, and
    `lyric_score` in the job's `audio` says how closely the song follows its lyrics. It takes the time of one more
    step, and up to a few seconds for long lyrics. Only for models whose `aligns_lyrics` in GET /v1/models is true.
    Default: false.
    """
    best_of: int
    """How many songs the model makes, from 1 to 8, of which you get the one with the best `lyric_score`. They have the
    seeds `seed`, `seed` + 1 and so on; `candidates` in the job's `audio` has the seed and score of each. All of them
    count in limits and costs. It needs lyrics, one variation, and a model whose `aligns_lyrics` in GET /v1/models is
    true. Default: 1.
    """
    thinking: Literal["none", "metadata", "codes"] | bool | None
    """What the model's planner decides before the song is rendered: none; metadata (tempo, key, time signature and
    language where the request has none, a fuller caption and, with `duration: auto`, the length); or codes (also the
    song's audio codes, which the model then plays as a cover). Also true for codes and false for none, as in ACE-Step.
    Only for models with a `planner` in GET /v1/models; its `thinking` is the default. Tasks with a source are not
    planned, but for lego and complete, whose metadata is.
    """
    plan: GivenPlan | str | None
    """A plan to use instead of making one: `job:ID` for that of one of your jobs, a plan as GET /v1/jobs/{job_id}/plan
    and POST /v1/plan return it, or an object with some of its fields. The request's own fields count more. Without
    codes it only fills in fields of the request.
    """
    auto_duration: bool
    """Whether the length is chosen for you, and `duration` is the longest that it may be: the planner chooses it if the
    song is planned, and `duration` counts in limits until then; else it is estimated from the lyrics. `duration: auto`
    means true, with 600 s. Default: false.
    """
    plan_caption: bool
    """Whether the song is rendered from the planner's caption instead of `prompt`. Default: true, as in ACE-Step."""
    plan_language: bool
    """Whether the planner may choose the language of the lyrics. Default: true, unless the request has a
    `vocal_language`.
    """
    plan_seed: int | None
    """Seed of the plan. Variation i, counted from 0, has the codes of `plan_seed` + i. The same request with the same
    seeds gives the same song. Default: `seed`; -1: a random seed. The job's `request` contains it.
    """
    plan_temperature: float
    """How freely the planner chooses, from 0 (always what is most likely) to 2. Default: 0.85."""
    plan_guidance: float
    """Strength of the planner's classifier-free guidance, from 1 (none, and twice as fast) to 10. Default: 2."""
    plan_top_k: int
    """The planner chooses among so many of the most likely tokens; 0 is all. Default: 0."""
    plan_top_p: float
    """The planner chooses among the most likely tokens that together have this probability. Default: 0.9."""
    plan_negative_prompt: str | None
    """What the planner's guidance leads away from, as a prompt. Default: nothing in particular."""
    model: str | None
    """Model that generates the song; GET /v1/models lists them. Default: the service's default model."""
    priority: int
    """Order among your own jobs for the same model: 9 starts first, 0 last. Default: 5. It does not affect the order
    between API keys, which take turns, unless the operator has created a key that outranks others.
    """
    deadline_s: float | None
    """Maximum time from submission to the end of the job, in seconds, including its time in the queue. A job that takes
    longer becomes `expired`. Default: 3600, unless the operator has set another value.
    """
    run_limit_s: float | None
    """Maximum time of one attempt, in seconds, without its time in the queue. A job that takes longer fails as
    `run_limit_exceeded`. Default: the operator's `queue.run_limit_s`, which a larger value does not exceed.
    """
    webhook_url: str | None
    """URL to which Sophia POSTs the job when it has ended. The request is signed according to Standard Webhooks
    (standardwebhooks.com). Its `type` is `job.` followed by the state, and its `data` is the job. Sophia retries for
    hours until the receiver answers with 2xx, and does not follow redirects. It refuses private addresses unless the
    operator allows them.
    """
    metadata: dict[str, str]
    """Your own names and values, at most 32. Sophia returns them with the job and does not use them."""

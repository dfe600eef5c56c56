"""From the fields of /release_task to a song."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from serve_app.api.compat.acestep import samples
from serve_app.api.compat.acestep.fields import Fields, Given, is_blank, is_one_of, number, switch
from serve_app.api.compat.translation import Translated, translated
from serve_app.api.field_errors import shortened, wrong_field
from serve_app.music import MAX_SEED, MEDIA_TYPES, SOURCE_TASKS
from serve_app.music.plan import Plan
from serve_app.music.task_fields import is_field_of

_SONGS: Final = 2
"""The songs of a call that does not say how many."""

Written = Literal["format", "sample"]


@dataclass(frozen=True, slots=True)
class Wish:
    """A song that a client asks for, before it is checked."""

    fields: Fields
    task: str
    decided: dict[str, tuple[str, Any]] = field(default_factory=dict)
    """By Sophia's name of a field, the client's name and the value; see `translated`."""
    written: Written | None = None
    """What a planner writes first: everything, for the description in `prompt`, or caption and lyrics anew."""

    def set(self, ours: str, given: Given) -> None:
        """Decide a field."""
        self.decided[ours] = (given.name, given.value)

    def value(self, ours: str) -> Any:
        """What was decided about a field."""
        return self.decided[ours][1] if ours in self.decided else None

    @property
    def translated(self) -> Translated:
        """The request. Raises InvalidRequest, which names the client's fields."""
        return translated({}, decided=self.decided)

    def take_plan(self, plan: Plan) -> None:
        """Use what a planner has written."""
        self.decided["prompt"] = (self.decided["prompt"][0], plan.caption)
        self.decided["lyrics"] = ("lyrics", "" if plan.instrumental else plan.lyrics)
        for ours in ("bpm", "keyscale", "timesignature", "duration"):
            if getattr(plan, ours) is not None:
                self.decided[ours] = (ours, getattr(plan, ours))
        if plan.language != "unknown":
            self.decided["vocal_language"] = ("vocal_language", plan.language)


class _Field(NamedTuple):
    """A field that only has another name here."""

    ours: str
    names: tuple[str, ...]
    read: Callable[[Any], Any] = lambda value: value
    """The value as Sophia takes it; None for one that means that it is left out. Raises ValueError for one that cannot be read."""
    usual: tuple[Any, ...] = ()
    """Values that clients send for every task, and that are left out without a word where the task does not use the field."""


def model_name(value: Any) -> Any:
    """A model's name; some clients have a prefix before it, such as `acestep/`."""
    return value.rpartition("/")[2].strip() if isinstance(value, str) else value


def _word(value: Any) -> Any:
    """One of a list of words."""
    return value.strip().lower().replace(" ", "_") if isinstance(value, str) else value


def _words(value: Any) -> Any:
    """A list of words, which may be one text."""
    if isinstance(value, str):
        value = value.replace("|", ",").split(",")
    return [_word(one) for one in value if not is_blank(one)] if isinstance(value, list) else value


def _levels(value: Any) -> Any:
    """A list of numbers, which may be one text."""
    return [number(one) for one in value.split(",") if one.strip()] if isinstance(value, str) else value


def _lyrics(value: Any) -> Any:
    return "" if _word(value) == "[inst]" else value


def _negative_prompt(value: Any) -> Any:
    return None if isinstance(value, str) and value.strip() == "NO USER INPUT" else value


_FIELDS: Final = (
    _Field("prompt", ("prompt", "caption")),
    _Field("lyrics", ("lyrics",), _lyrics),
    _Field("model", ("model", "model_name", "dit_model"), model_name),
    _Field("bpm", ("bpm",), number),
    _Field("keyscale", ("key_scale", "keyscale", "key")),
    _Field("timesignature", ("time_signature", "timesignature")),
    _Field("variations", ("batch_size",), number),
    _Field("steps", ("inference_steps",), number),
    _Field("guidance_scale", ("guidance_scale",), number),
    _Field("guidance_mode", ("guidance_variant",), _word),
    _Field("shift", ("shift",), number),
    _Field("timesteps", ("timesteps",), _levels),
    _Field("cfg_interval_start", ("cfg_interval_start",), number),
    _Field("cfg_interval_end", ("cfg_interval_end",), number),
    _Field("dcw", ("dcw_enabled",), switch),
    _Field("dcw_mode", ("dcw_mode",), _word),
    _Field("dcw_strength", ("dcw_scaler",), number),
    _Field("dcw_high_strength", ("dcw_high_scaler",), number),
    _Field("retake_variance", ("retake_variance",), number),
    _Field("retake_seed", ("retake_seed",), number),
    _Field("fade_in", ("fade_in_duration",), number),
    _Field("fade_out", ("fade_out_duration",), number),
    _Field("cover_strength", ("audio_cover_strength", "cover_strength"), number),
    _Field("cover_noise_strength", ("cover_noise_strength",), number),
    _Field("chunk_mask_mode", ("chunk_mask_mode",), _word),
    _Field("repaint_mode", ("repaint_mode",), _word, ("balanced",)),
    _Field("repaint_strength", ("repaint_strength",), number, (0.5,)),
    _Field("track", ("track_name",), _word),
    _Field("tracks", ("track_classes", "instruments"), _words, ("[]",)),
    _Field("audio_codes", ("audio_code_string", "audio_codes")),
    _Field("plan_temperature", ("lm_temperature",), number),
    _Field("plan_guidance", ("lm_cfg_scale",), number),
    _Field("plan_top_k", ("lm_top_k",), number),
    _Field("plan_top_p", ("lm_top_p",), number),
    _Field("plan_negative_prompt", ("lm_negative_prompt",), _negative_prompt),
)

_WITHOUT_EFFECT: Final[Mapping[str, tuple[Any, ...]]] = {
    "instruction": (),
    "global_caption": (),
    "negative_prompt": (),
    "velocity_norm_threshold": (0,),
    "velocity_ema_factor": (0,),
    "latent_shift": (0,),
    "latent_rescale": (1,),
    "dcw_wavelet": ("haar",),
    "repaint_latent_crossfade_frames": (10,),
    "repaint_wav_crossfade_sec": (0,),
    "lm_model_path": (),
    "lm_backend": ("vllm", "pt", "mlx"),
    "lm_repetition_penalty": (1,),
    "constrained_decoding": (True,),
    "constrained_decoding_debug": (False,),
    "allow_lm_batch": (True, False),
    "parallel_thinking": (True, False),
    "use_tiled_decode": (True, False),
    "full_analysis_only": (False,),
    "analysis_only": (False,),
    "extract_codes_only": (False,),
}
"""Fields that Sophia has no equivalent of, and their values that change nothing about the song."""

_ANALYSES: Final = ("analysis_only", "full_analysis_only", "extract_codes_only")


def wish_of(fields: Fields) -> Wish:
    """The song that a client asks for, but for its recordings. Raises InvalidRequest for what is no song."""
    _refuse_analyses(fields)
    task = fields.take("task_type")
    wish = Wish(fields, str(_word(task.value)) if task and not is_blank(task.value) else "text2music")
    if task:
        wish.set("task_type", Given(task.name, wish.task))
    for one in _FIELDS:
        _take(wish, one)
    wish.decided.setdefault("variations", ("batch_size", 1 if wish.task == "stems" else _SONGS))
    _take_length(wish)
    _take_part(wish)
    _take_sampler(wish)
    _take_seed(wish)
    _take_format(wish)
    _take_language(wish)
    _take_caption(wish)
    return wish


def planned(wish: Wish, able: bool) -> Wish:
    """The song with what a planner does for it, if its model has one (`able`)."""
    description = wish.fields.take("sample_query", "description", "desc")
    is_sample = wish.fields.switch("sample_mode") or (description is not None and not is_blank(description.value))
    wants_format = wish.fields.take("use_format", "format")
    wants_codes = wish.fields.take("thinking")
    if wants_codes is not None and not is_blank(wants_codes.value):
        _decide_thinking(wish, wants_codes, able)
    if is_sample:
        if description is not None and not is_blank(description.value):
            wish.set("prompt", description)
        elif "prompt" not in wish.decided:
            wish.set("prompt", Given("sample_query", samples.any_description()))
        return _written(wish, "sample")
    if wants_format is None or not switch(wants_format.value):
        return wish
    if able:
        return _written(wish, "format")
    wish.fields.ignore(wants_format, "the model has no planner, so prompt and lyrics are used as they are")
    return wish


def ignore_the_rest(wish: Wish) -> None:
    """Report all fields that nothing has used."""
    for name, usual in _WITHOUT_EFFECT.items():
        given = wish.fields.take(name)
        if given is not None and not is_blank(given.value) and not is_one_of(given.value, usual):
            wish.fields.ignore(given, "Sophia has nothing that it could set")
    wish.fields.ignore_the_rest("it is not a field that Sophia knows")


def _written(wish: Wish, kind: Written) -> Wish:
    return Wish(wish.fields, wish.task, wish.decided, kind)


def _refuse_analyses(fields: Fields) -> None:
    for name in _ANALYSES:
        given = fields.take(name)
        if given is not None and switch(given.value):
            raise wrong_field(
                given.name,
                shortened(given.value),
                "must be false: this route makes songs. POST /v1/understand describes a song, and GET /v1/jobs/{id}/codes has its "
                "audio codes",
            )


def _take(wish: Wish, one: _Field) -> None:
    given = wish.fields.take(*one.names)
    if given is None or is_blank(given.value):
        return
    try:
        value = one.read(given.value)
    except ValueError:
        wish.fields.ignore(given, "it cannot be read")
        return
    if value is None or value == []:
        return
    if is_field_of(one.ours, wish.task):
        wish.set(one.ours, Given(given.name, value))
    elif not is_one_of(value, one.usual):
        wish.fields.ignore(given, f"task_type {wish.task!r} does not use it")


def _take_length(wish: Wish) -> None:
    """Without a length, or with one of 0 or less, it is chosen; a source decides it in any case."""
    given = wish.fields.number("audio_duration", "duration", "target_duration")
    if given is not None and given.value > 0:
        wish.set("duration", given)
    elif wish.task not in SOURCE_TASKS:
        wish.decided["duration"] = ("audio_duration", "auto")


def _take_part(wish: Wish) -> None:
    """The part of the source that is made anew. A start before the source's own adds something before it."""
    start = wish.fields.number("repainting_start")
    end = wish.fields.number("repainting_end")
    if not is_field_of("repaint_start", wish.task):
        for given in (start, end):
            if given is not None and given.value > 0:
                wish.fields.ignore(given, f"task_type {wish.task!r} does not use it")
        return
    if start is not None and start.value < 0 and wish.task == "repaint":
        wish.set("extend_before", Given(start.name, -start.value))
        start = Given(start.name, 0)
    if start is not None:
        wish.set("repaint_start", start)
    if end is not None and end.value >= 0:
        wish.set("repaint_end", end)


def _take_sampler(wish: Wish) -> None:
    method = wish.fields.take("infer_method")
    mode = wish.fields.take("sampler_mode")
    turns = wish.fields.switch("use_adg")
    if method is not None and not is_one_of(method.value, ("ode", "")):
        wish.set("sampler", method)
    elif mode is not None and not is_blank(mode.value):
        wish.set("sampler", mode)
    if turns and "guidance_mode" not in wish.decided:
        wish.decided["guidance_mode"] = ("use_adg", "adg")


def _take_seed(wish: Wish) -> None:
    """A seed counts only where the client wants none at random. Each further song has the next seed."""
    is_random = wish.fields.switch("use_random_seed", default=True)
    given = wish.fields.take("seed", "seeds")
    if is_random or given is None or is_blank(given.value):
        return
    try:
        seeds = _seeds(given.value)[: int(wish.value("variations"))]
    except (ValueError, TypeError):
        wish.fields.ignore(given, "it is no seed")
        return
    if not seeds or seeds[0] < 0:
        return
    wish.set("seed", Given(given.name, seeds[0]))
    if seeds != [(seeds[0] + number) % (MAX_SEED + 1) for number in range(len(seeds))]:
        wish.fields.ignore(given, "only its first seed counts, and each further song has the next one")


def _seeds(value: Any) -> list[float]:
    values = value.split(",") if isinstance(value, str) else value if isinstance(value, list) else [value]
    return [number(one) for one in values if not is_blank(one)]


def _take_format(wish: Wish) -> None:
    given = wish.fields.take("audio_format")
    if given is None or is_blank(given.value):
        return
    name = _word(given.value)
    if not isinstance(name, str) or name not in MEDIA_TYPES:
        wish.fields.ignore(given, "it is no format here, so the file is flac")
        name = "flac"
    wish.set("format", Given(given.name, name))


def _take_language(wish: Wish) -> None:
    """Without a language, a planner may choose it; else only if it is the client's wish."""
    given = wish.fields.take("vocal_language", "language")
    may_choose = wish.fields.switch("use_cot_language", default=True)
    if given is not None and not is_blank(given.value):
        language = _word(given.value)
        wish.set("vocal_language", Given(given.name, language))
        if may_choose and language == "unknown":
            wish.decided["plan_language"] = ("use_cot_language", True)
    if not may_choose:
        wish.decided["plan_language"] = ("use_cot_language", False)


def _take_caption(wish: Wish) -> None:
    """Whose caption is rendered. A song whose task names a track needs no other words."""
    if not wish.fields.switch("use_cot_caption", default=True) or wish.fields.switch("is_format_caption"):
        wish.decided["plan_caption"] = ("use_cot_caption", False)
    if "prompt" in wish.decided:
        return
    whole = wish.fields.take("global_caption")
    if whole is not None and not is_blank(whole.value):
        wish.set("prompt", whole)
        return
    several = wish.value("tracks")
    tracks = [wish.value("track"), *(several if isinstance(several, list) else ())]
    named = ", ".join(one.replace("_", " ") for one in tracks if isinstance(one, str))
    if named:
        wish.decided["prompt"] = ("prompt", named)


def _decide_thinking(wish: Wish, given: Given, able: bool) -> None:
    wanted = switch(given.value) or is_one_of(given.value, ("codes", "metadata"))
    if wanted and not able:
        wish.fields.ignore(given, "the model has no planner")
        return
    thinking = "metadata" if "audio_codes" in wish.decided else "codes"
    wish.set("thinking", Given(given.name, thinking if wanted else "none"))

"""The engine: one AceStepPipeline on one device, from a checkpoint to songs. The only file that computes with torch.

One thread at a time may call an engine: the pipeline keeps a run's state on itself. torch and diffusers are imported where
they are first needed, so that a missing or broken package is reported like every other fault of loading.
"""

import contextlib
import gc
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from serve_app import errors, weights
from serve_app.audio import Song
from serve_app.config import ModelArgs, Variant
from serve_app.schemas import (
    MAX_LYRICS_TOKENS,
    MAX_PROMPT_TOKENS,
    SAMPLE_RATE,
    TASKS,
    VARIANT_DEFAULTS,
    MusicRequest,
    TaskType,
)

if TYPE_CHECKING:
    import torch

OnStep = Callable[[str, int, int], None]
"""Called with a stage (conditioning, denoising or decoding), its steps done and its steps in all."""

_TARGET_PEAK: Final = 10.0 ** (-1.0 / 20.0)
"""-1 dBFS, to which AceStepPipeline.__call__ normalises every song (diffusers 0.42.1, `target_amp`)."""

_SILENCE: Final = 1e-5
"""A peak below this (-100 dBFS, under a 16-bit file's smallest step) is silence: normalised, it would be hiss."""


@dataclass(frozen=True)
class EngineFacts:
    """What was loaded, and where. Sizes are in bytes; `free_memory` and `peak_memory` are the device's, None on the CPU."""

    variant: Variant
    source: str
    revision: str | None
    dtype: str
    device: str
    tasks: tuple[TaskType, ...]
    noise: bool
    versions: Mapping[str, str]
    weights_bytes: int
    free_memory: int | None = None
    peak_memory: int | None = None


class AceStepEngine:
    """Plays one model. `name` is the model's name in the configuration, `cache` the folder for fetched checkpoints."""

    def __init__(self, name: str, args: ModelArgs, cache: Path):
        self._name, self._args, self._cache = name, args, cache
        self._pipe: Any = None
        self._variant: Variant = "turbo"

    def load(self, report: weights.Report) -> EngineFacts:
        """Makes the engine ready, through the phases preflight, download, load and warm_up, told to `report`.

        Raises:
            LoadError: one of its subclasses, which names the cause and what to do.
        """
        report("preflight", None, "importing packages and looking for the device")
        with _import_errors():
            versions = _import_packages()
        device = _choose_device(self._name, self._args)
        dtype = _choose_dtype(self._args, device)

        report("download", None, f"looking for {self._args.source}")
        folder = weights.resolve(self._name, self._args, self._cache, report)

        report("load", None, f"checking {folder}")
        checkpoint = weights.verify(folder, self._args)
        _need_memory(device, checkpoint.parameters * dtype.itemsize)
        report("load", None, f"loading {checkpoint.bytes / 1e9:.2f} GB to {device}")
        with _import_errors(), _memory_errors(device, checkpoint.parameters * dtype.itemsize):
            self._pipe = _load_pipeline(checkpoint, device, dtype)
        self._variant = checkpoint.variant
        self._pipe.is_turbo = self._variant == "turbo"  # `variant` in the configuration beats the checkpoint's word

        report("warm_up", None, "playing a first short song")
        with _memory_errors(device, checkpoint.parameters * dtype.itemsize):
            self._self_test()
        return EngineFacts(
            variant=self._variant,
            source=self._args.source,
            revision=_revision(self._args, folder),
            dtype=str(dtype).removeprefix("torch."),
            device=_device_name(device),
            tasks=TASKS[self._variant],
            noise=checkpoint.random_weights,
            versions=versions,
            weights_bytes=checkpoint.bytes,
            **_memory_facts(device),
        )

    def warnings(self, request: MusicRequest) -> tuple[str, ...]:
        """What in `request` will not be honoured, one sentence each."""
        found = [*self._cut_texts(request)]
        if request.guidance_scale is not None and self._variant == "turbo":
            found.append("guidance_scale is ignored by turbo models.")
        elif request.cfg_interval_start > request.cfg_interval_end:
            found.append("guidance is never applied: cfg_interval_start lies after cfg_interval_end.")
        return tuple(found)

    def generate(self, request: MusicRequest, on_step: OnStep, stopped: Callable[[], bool]) -> Iterator[Song]:
        """Plays `request`, whose `seed` must be filled in, and yields its variations one by one, in order.

        Variation i starts from noise of seed + i alone, so it is the song that this seed gives by itself, up to rounding
        (matrices of another shape are added up in another order). The same request gives the same bytes. `stopped` is asked
        between two steps and between two tiles of decoding.

        Raises:
            Stopped: `stopped` said so; the engine can go on with the next request.
            BadAudio: the model gave NaN, infinity or silence.
            OutOfDeviceMemory: the request does not fit.
        """
        with self._out_of_memory(request):
            latents = self._denoise(request, on_step, stopped)
        tiles = _Tiles(self._pipe.vae, latents, on_step, stopped)
        for i, seed in enumerate(_seeds(request)):
            with self._out_of_memory(request):
                song = Song(seed=seed, samples=_finished(self._decode(latents[i : i + 1], tiles), request, seed))
            yield song
            del song  # up to 230 MB, which the caller may have let go of by now

    def _denoise(self, request: MusicRequest, on_step: OnStep, stopped: Callable[[], bool]) -> "torch.Tensor":
        """Latents of all variations, (variations, ceil(25 * duration), 64)."""
        import torch

        settings = _settings(request, self._variant)

        def after_step(pipe: Any, step: int, timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step("denoising", step + 1, settings["num_inference_steps"])
            _stop_if(stopped)
            return tensors

        _stop_if(stopped)
        on_step("conditioning", 0, 1)
        with torch.inference_mode():
            result: torch.Tensor = self._pipe(
                prompt=[request.prompt] * request.variations,
                lyrics=[request.lyrics] * request.variations,
                vocal_language=[request.vocal_language] * request.variations,
                task_type=request.task_type,
                generator=[torch.Generator(self._pipe.device).manual_seed(seed) for seed in _seeds(request)],
                output_type="latent",
                callback_on_step_end=after_step,
                **settings,
                **_metas(request),
            ).audios
        return result

    def _decode(self, latents: "torch.Tensor", tiles: "_Tiles") -> np.ndarray:
        """Raw samples, (channels, frames) in float32, of one variation's latents (1, latent frames, 64)."""
        import torch

        with torch.inference_mode(), tiles.watched():
            audio = self._pipe.vae.decode(latents.transpose(1, 2), return_dict=False)[0]
            samples: np.ndarray = audio[0].float().cpu().numpy()
        return samples

    def _self_test(self) -> None:
        """One second in two steps through the same path as every song.

        Raises:
            SelfTestFailed: the song was not finite, silent, or of the wrong length.
        """
        request = MusicRequest(prompt="piano", duration=1.0, steps=2, seed=0)
        try:
            songs = list(self.generate(request, lambda stage, step, steps: None, lambda: False))
        except errors.BadAudio as error:
            raise errors.SelfTestFailed(
                f"The self-test of {self._name} failed: {error.message} The checkpoint may be damaged or of another "
                "kind: fetch it again; with dtype bfloat16, try float32."
            ) from error
        if [song.samples.shape for song in songs] != [(SAMPLE_RATE, 2)]:
            raise errors.SelfTestFailed(
                f"The self-test of {self._name} failed: one second came out as {songs[0].samples.shape} instead of "
                f"({SAMPLE_RATE}, 2). Sophia plays 48 kHz stereo checkpoints only."
            )

    def _cut_texts(self, request: MusicRequest) -> Iterator[str]:
        text, lyrics = self._pipe._format_prompt(
            request.prompt,
            request.lyrics,
            request.vocal_language,
            request.duration,
            self._pipe._get_task_instruction(request.task_type),
            request.bpm,
            request.keyscale,
            request.timesignature,
        )
        yield from self._cut(
            "prompt", text, MAX_PROMPT_TOKENS, ", of which some are the instruction; tempo and key follow it"
        )
        yield from self._cut("lyrics", lyrics, MAX_LYRICS_TOKENS, "")

    def _cut(self, field: str, text: str, limit: int, note: str) -> Iterator[str]:
        starts = [start for start, _ in self._pipe.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]
        if len(starts) > limit:
            lost = " ".join(text[starts[limit] :].removesuffix("<|endoftext|>").split())[:40]
            yield f"{field} was cut: the model reads {limit} of its {len(starts)} tokens{note}. Lost from: {lost!r}."

    @contextlib.contextmanager
    def _out_of_memory(self, request: MusicRequest) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises a plain one
            if not _is_out_of_memory(error):
                raise
            raise errors.OutOfDeviceMemory(
                f"{request.variations} variation(s) of {request.duration:g} s do not fit into the memory of "
                f"{_device_name(self._pipe.device)}. Ask for fewer variations or a shorter duration."
            ) from None  # the traceback would hold the tensors
        finally:
            _empty_cache(self._pipe.device)


# --- Loading --------------------------------------------------------------------------------------------------------


def _import_packages() -> dict[str, str]:
    """Imports what generation needs, so that nothing is missing later, and tells the versions."""
    with weights.quiet_libraries():
        import diffusers
        import torch
        import transformers

        # diffusers imports this lazily; here is where a broken package shows.
        from diffusers import AceStepPipeline  # noqa: F401

    diffusers.utils.logging.disable_progress_bar()
    transformers.utils.logging.disable_progress_bar()
    # The same request and seed must give the same bytes: cuDNN may otherwise choose another convolution each time.
    torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = True, False
    return {name: version(name) for name in ("torch", "diffusers", "transformers")}


@contextlib.contextmanager
def _import_errors() -> Iterator[None]:
    """Names the package at fault, also where diffusers wraps the cause into a RuntimeError of its own."""
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:
        said = " ".join(str(cause) for cause in _causes(error))
        if "libc10_cuda" in said or "torchaudio" in said or "torchvision::nms" in said:
            raise errors.PackageMismatch(
                f"torch {version('torch')} and torchaudio or torchvision are of different builds ({_first_line(said)}). "
                "Sophia needs neither of the two: pip uninstall torchaudio torchvision."
            ) from error
        if isinstance(error, ImportError):
            missing = next(
                (cause.name for cause in _causes(error) if isinstance(cause, ImportError) and cause.name), ""
            )
            package = missing.split(".")[0] or "a package"
            raise errors.PackageMissing(
                f"{package} cannot be imported ({_first_line(said)}). Install it: pip install {package}"
            ) from error
        raise


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _first_line(text: str) -> str:
    return text.strip().split("\n")[0][:200]


def _choose_device(name: str, args: ModelArgs) -> "torch.device":
    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        raise errors.DeviceUnavailable(
            f"models.{name}.device is cuda, but this node offers only the CPU (torch {torch.__version__}, {built}; CUDA "
            "devices visible: 0). Run it on a node with a GPU and its driver, or set device: cpu."
        )
    on_cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    return torch.device("cuda:0" if on_cuda else "cpu")


def _choose_dtype(args: ModelArgs, device: "torch.device") -> "torch.dtype":
    import torch

    wanted = args.dtype if args.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def _load_pipeline(checkpoint: weights.CheckpointFacts, device: "torch.device", dtype: "torch.dtype") -> Any:
    """The pipeline on its device. Weights are memory-mapped files, copied straight to the device."""
    from diffusers import AceStepPipeline

    with weights.quiet_libraries(), _misfit_errors(checkpoint):
        pipe = AceStepPipeline.from_pretrained(
            checkpoint.folder,
            torch_dtype=dtype,
            local_files_only=True,
            use_safetensors=True,
            low_cpu_mem_usage=True,
            device_map=device.type,  # diffusers takes no index here, and there is one GPU a worker
        )
    _need_all_weights(pipe, checkpoint)
    _fold_weight_norm(pipe.vae)
    pipe.vae.enable_tiling()  # off by default, whatever the pipeline's comment says
    pipe.set_progress_bar_config(disable=True)
    for part in pipe.components.values():
        if hasattr(part, "requires_grad_"):
            part.eval().requires_grad_(False)
    return pipe


@contextlib.contextmanager
def _misfit_errors(checkpoint: weights.CheckpointFacts) -> Iterator[None]:
    """Weights that are not what the configuration says.

    Another shape is a ValueError in diffusers and a RuntimeError in transformers; a lacking tensor of diffusers stays on the
    meta device, from where it cannot be moved.
    """
    try:
        yield
    except (ValueError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not re.search("mismatch|meta tensor", str(error)):
            raise
        raise errors.CorruptFile(
            f"The weights in {checkpoint.folder} lack tensors or do not fit their configuration "
            f"({_first_line(str(error))}). Fetch or copy the checkpoint again."
        ) from error


def _need_all_weights(pipe: Any, checkpoint: weights.CheckpointFacts) -> None:
    """Refuses weights that lack tensors, which both libraries fill with random numbers and no more than a log line."""
    for name, held in checkpoint.numbers.items():
        needed = sum(tensor.numel() for tensor in getattr(pipe, name).state_dict().values())
        if needed > held:
            raise errors.CorruptFile(
                f"The weights of {name} in {checkpoint.folder} lack {needed - held} of {needed} numbers. Fetch or copy the "
                "checkpoint again."
            )


def _fold_weight_norm(vae: Any) -> None:
    """Computes w = g * v / |v| (Salimans and Kingma 2016) once; AutoencoderOobleck would do it in every pass."""
    from torch.nn.utils import remove_weight_norm

    for module in vae.modules():
        if hasattr(module, "weight_g"):
            remove_weight_norm(module)


def _revision(args: ModelArgs, folder: Path) -> str | None:
    """The commit that was fetched: a repository's checkpoint lies in a folder of its commit's name."""
    return None if args.source == "embedded" or args.source.startswith(("/", "~")) else folder.name


# --- The device's memory --------------------------------------------------------------------------------------------


def _device_name(device: "torch.device") -> str:
    import torch

    return f"{device} {torch.cuda.get_device_name(device)}" if device.type == "cuda" else "cpu"


def _need_memory(device: "torch.device", needed: int) -> None:
    import torch

    if device.type == "cuda" and needed > torch.cuda.mem_get_info(device)[0]:
        raise errors.DeviceMemory(_too_little(device, needed))


def _too_little(device: "torch.device", needed: int) -> str:
    import torch

    free = f"{torch.cuda.mem_get_info(device)[0] / 1e9:.1f} GB are free" if device.type == "cuda" else "there is less"
    return (
        f"The weights need {needed / 1e9:.1f} GB on {_device_name(device)}, where {free}. End what else runs there, or take "
        "a smaller model."
    )


@contextlib.contextmanager
def _memory_errors(device: "torch.device", needed: int) -> Iterator[None]:
    try:
        yield
    except (RuntimeError, errors.OutOfDeviceMemory) as error:
        if not isinstance(error, errors.OutOfDeviceMemory) and not _is_out_of_memory(error):
            raise
        raise errors.DeviceMemory(_too_little(device, needed)) from error


def _is_out_of_memory(error: RuntimeError) -> bool:
    import torch

    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _memory_facts(device: "torch.device") -> dict[str, int]:
    import torch

    if device.type != "cuda":
        return {}
    return {
        "free_memory": torch.cuda.mem_get_info(device)[0],
        "peak_memory": torch.cuda.max_memory_allocated(device),
    }


def _empty_cache(device: "torch.device") -> None:
    import torch

    if device.type == "cuda":
        gc.collect()
        torch.cuda.empty_cache()


# --- Generating -----------------------------------------------------------------------------------------------------


def _seeds(request: MusicRequest) -> list[int]:
    if request.seed is None:
        raise ValueError("the caller fills in the seed")
    return [request.seed + i for i in range(request.variations)]


def _settings(request: MusicRequest, variant: Variant) -> dict[str, Any]:
    """Steps, guidance and shift, with the variant's defaults where the request says nothing."""
    defaults = VARIANT_DEFAULTS[variant]
    guidance = defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
    # The pipeline refuses an interval that ends before it starts; here it means that guidance is never applied.
    never = request.cfg_interval_start > request.cfg_interval_end
    return {
        "num_inference_steps": defaults.steps if request.steps is None else request.steps,
        "guidance_scale": 1.0 if never or variant == "turbo" else guidance,
        "shift": defaults.shift if request.shift is None else request.shift,
        "cfg_interval_start": 0.0 if never else request.cfg_interval_start,
        "cfg_interval_end": 1.0 if never else request.cfg_interval_end,
    }


def _metas(request: MusicRequest) -> dict[str, Any]:
    return {
        "audio_duration": request.duration,
        "bpm": request.bpm,
        "keyscale": request.keyscale,
        "timesignature": request.timesignature,
    }


def _stop_if(stopped: Callable[[], bool]) -> None:
    if stopped():
        raise errors.Stopped


class _Tiles:
    """Counts the VAE's tiles over all variations: AutoencoderOobleck._tiled_decode calls its decoder once a tile."""

    def __init__(self, vae: Any, latents: "torch.Tensor", on_step: OnStep, stopped: Callable[[], bool]):
        self._vae, self._on_step, self._stopped = vae, on_step, stopped
        songs, frames, _ = latents.shape
        stride = vae.tile_latent_min_length - 2 * vae.tile_latent_overlap
        self._total = songs * (ceil(frames / stride) if frames > vae.tile_latent_min_length else 1)
        self._done = 0

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        hooks = [
            self._vae.decoder.register_forward_pre_hook(lambda module, inputs: _stop_if(self._stopped)),
            self._vae.decoder.register_forward_hook(lambda module, inputs, output: self._count()),
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def _count(self) -> None:
        self._done += 1
        self._on_step("decoding", self._done, self._total)


def _finished(raw: np.ndarray, request: MusicRequest, seed: int) -> np.ndarray:
    """AceStepPipeline.__call__'s post-processing of `raw` (channels, frames), then the exact length, as (frames, 2).

    The pipeline divides by the peak where it is above 1 (anti-clip), then scales the peak to -1 dBFS. Same arithmetic, in
    place, since a song of ten minutes takes 230 MB; over the whole decoded length, before the cut, as there.

    Raises:
        BadAudio: not finite, or silent.
    """
    peak = _peak(raw)
    if not np.isfinite(peak) or peak < _SILENCE:
        what = "silence" if peak < _SILENCE else "values that are not finite"
        steps = request.steps or "the default number of"
        raise errors.BadAudio(f"The model gave {what} with seed {seed} and {steps} steps. Try another seed.")
    if peak > 1.0:
        raw /= peak
    raw *= _TARGET_PEAK / max(_peak(raw), 1e-6)
    frames = round(request.duration * SAMPLE_RATE)
    return np.ascontiguousarray(raw[:, :frames].T)


def _peak(samples: np.ndarray) -> float:
    """max |x| without a temporary array; NaN where any value is NaN."""
    return float(np.maximum(samples.max(), -samples.min()))

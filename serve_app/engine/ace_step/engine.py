"""The engine: one AceStepPipeline on one device, from a checkpoint to songs. The only part that computes with torch.

One thread at a time may call an engine: the pipeline keeps a run's state on itself. torch and diffusers are imported where
they are first needed, so that a missing or broken package is reported like every other fault of loading.
"""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from serve_app import errors, weights
from serve_app.audio import Song
from serve_app.config import ModelArgs, Variant
from serve_app.engine.ace_step.device import (
    choose_device,
    choose_dtype,
    device_name,
    empty_cache,
    is_out_of_memory,
    memory_errors,
    memory_facts,
    need_memory,
    release_memory,
)
from serve_app.engine.ace_step.generating import Tiles, finished, metas, seeds, settings, stop_if, words
from serve_app.engine.ace_step.loading import import_errors, import_packages, load_pipeline, unforeseen
from serve_app.engine.protocol import EngineFacts, OnStep
from serve_app.music import MAX_LYRICS_TOKENS, MAX_PROMPT_TOKENS, SAMPLE_RATE, SELF_TEST, TASKS, MusicRequest

if TYPE_CHECKING:
    import torch


class AceStepEngine:
    """Plays one model. `name` is the model's name in the configuration, `cache` the folder for fetched checkpoints."""

    slots: int = 1
    """The pipeline keeps a run's state on itself, so it generates one job at a time."""

    def __init__(self, name: str, args: ModelArgs, cache: Path) -> None:
        self._name = name
        self._args = args
        self._cache = cache
        self._pipe: Any = None
        self._variant: Variant = "turbo"

    def load(self, report: weights.Report) -> EngineFacts:
        """Makes the engine ready, through the phases preflight, download, load and warm_up, told to `report`.

        Raises:
            LoadError: one of its subclasses, which names the cause and what to do; itself for a cause that has none.
        """
        self._pipe = None  # of a load that failed before
        try:
            with import_errors():
                return self._load(report)
        except errors.LoadError:
            raise
        except Exception as error:
            raise unforeseen(self._name, error) from error

    def _load(self, report: weights.Report) -> EngineFacts:
        report("preflight", None, "importing packages and looking for the device")
        versions = import_packages()
        device = choose_device(self._name, self._args)
        dtype = choose_dtype(self._args, device)

        report("download", None, f"looking for {self._args.source}")
        folder = weights.resolve(self._name, self._args, self._cache, report)

        report("load", None, f"checking {folder}")
        with memory_errors(device, weights.weight_bytes(folder)):  # verify maps the weight files into memory
            checkpoint = weights.verify(folder, self._args)
        needed = checkpoint.parameters * dtype.itemsize
        release_memory(device)
        need_memory(device, needed)
        report("load", None, f"loading {checkpoint.bytes / 1e9:.2f} GB to {device}")
        with memory_errors(device, needed):
            self._pipe = load_pipeline(checkpoint, device, dtype)
        self._variant = checkpoint.variant
        self._pipe.is_turbo = self._variant == "turbo"  # `variant` in the configuration beats the checkpoint's word

        report("warm_up", None, "playing a first short song")
        with memory_errors(device, needed):
            self._self_test(report)
        return EngineFacts(
            variant=self._variant,
            source=self._args.source,
            revision=_revision(self._args, folder),
            dtype=str(dtype).removeprefix("torch."),
            device=device_name(device),
            tasks=TASKS[self._variant],
            noise=checkpoint.random_weights,
            versions=versions,
            weights_bytes=checkpoint.bytes,
            **memory_facts(device),
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
            DeviceLost: the device failed; this process can compute nothing more.
        """
        with self._device_errors(request):
            latents = self._denoise(request, on_step, stopped)
        tiles = Tiles(self._pipe.vae, latents, on_step, stopped)
        for i, seed in enumerate(seeds(request)):
            with self._device_errors(request):
                song = Song(seed=seed, samples=finished(self._decode(latents[i : i + 1], tiles), request, seed))
            yield song
            del song  # up to 230 MB, which the caller may have let go of by now

    def _denoise(self, request: MusicRequest, on_step: OnStep, stopped: Callable[[], bool]) -> "torch.Tensor":
        """Latents of all variations, (variations, ceil(25 * duration), 64)."""
        import torch

        chosen = settings(request, self._variant)
        lyrics, language = words(request)

        def after_step(_pipe: Any, step: int, _timestep: float, tensors: dict[str, Any]) -> dict[str, Any]:
            on_step("denoising", step + 1, chosen["num_inference_steps"])
            stop_if(stopped)
            return tensors

        stop_if(stopped)
        on_step("conditioning", 0, 1)
        with torch.inference_mode():
            result: torch.Tensor = self._pipe(
                prompt=[request.prompt] * request.variations,
                lyrics=[lyrics] * request.variations,
                vocal_language=[language] * request.variations,
                task_type=request.task_type,
                generator=[torch.Generator(self._pipe.device).manual_seed(seed) for seed in seeds(request)],
                output_type="latent",
                callback_on_step_end=after_step,
                **chosen,
                **metas(request),
            ).audios
        return result

    def _decode(self, latents: "torch.Tensor", tiles: "Tiles") -> np.ndarray:
        """Raw samples, (channels, frames) in float32, of one variation's latents (1, latent frames, 64)."""
        import torch

        with torch.inference_mode(), tiles.watched():
            audio = self._pipe.vae.decode(latents.transpose(1, 2), return_dict=False)[0]
            samples: np.ndarray = audio[0].float().cpu().numpy()
        return samples

    def _self_test(self, report: weights.Report) -> None:
        """Plays SELF_TEST.

        Raises:
            SelfTestFailed: the song was not finite, silent, or of the wrong length.
        """

        def on_step(stage: str, step: int, steps: int) -> None:
            report("warm_up", None, f"playing a first short song: {stage}, {step} of {steps}")

        try:
            songs = list(self.generate(SELF_TEST, on_step, lambda: False))
        except errors.BadAudio as error:
            raise errors.SelfTestFailed(
                f"The self-test of {self._name} failed: {error.message.removesuffix(' Try another seed.')} The checkpoint may "
                "be damaged or of another kind: fetch it again; with dtype bfloat16, try float32."
            ) from error
        if [song.samples.shape for song in songs] != [(SAMPLE_RATE, 2)]:
            raise errors.SelfTestFailed(
                f"The self-test of {self._name} failed: one second came out as {songs[0].samples.shape} instead of "
                f"({SAMPLE_RATE}, 2). Sophia plays 48 kHz stereo checkpoints only."
            )

    def _cut_texts(self, request: MusicRequest) -> Iterator[str]:
        sung, language = words(request)
        text, lyrics = self._pipe._format_prompt(
            request.prompt,
            sung,
            language,
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
    def _device_errors(self, request: MusicRequest) -> Iterator[None]:
        import torch

        device = self._pipe.device
        try:
            yield
            empty_cache(device)  # which may be the first to hear of a kernel that failed
        except torch.AcceleratorError as error:
            # The process's CUDA context is gone: nothing can be computed here any more, nor any memory given back.
            raise errors.DeviceLost(f"{device_name(device)} failed: {error}") from error
        except BaseException as error:
            release_memory(device)
            if not isinstance(error, RuntimeError) or not is_out_of_memory(error):
                raise
            raise errors.OutOfDeviceMemory(
                f"{request.variations} variation(s) of {request.duration:g} s do not fit into the memory of "
                f"{device_name(device)}. Ask for fewer variations or a shorter duration."
            ) from None  # the traceback would hold the tensors


def _revision(args: ModelArgs, folder: Path) -> str | None:
    """The commit that was fetched: a repository's checkpoint lies in a folder of its commit's name."""
    return None if args.source == "embedded" or weights.is_local(args.source) else folder.name

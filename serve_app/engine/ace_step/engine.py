"""AceStepEngine: loads a checkpoint's components, as an AceStepPipeline, to one device, and generates songs with them.

Only one thread at a time may call an engine, because the progress of decoding is reported by hooks on the VAE, which all songs
share. torch and diffusers, and the files that import them, are imported inside functions, so that a missing or broken package
is reported as a LoadError.
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
    release_memory,
    require_memory,
    set_threads,
)
from serve_app.engine.ace_step.generating import (
    TileProgress,
    lyrics_and_language,
    post_process,
    sampling_settings,
    seeds,
    stop_if,
)
from serve_app.engine.ace_step.loading import import_errors, import_packages, load_pipeline, unexpected_error
from serve_app.engine.protocol import EngineFacts, OnStep
from serve_app.music import MAX_LYRICS_TOKENS, MAX_PROMPT_TOKENS, SAMPLE_RATE, SELF_TEST, TASKS, MusicRequest
from serve_app.plurals import counted

if TYPE_CHECKING:
    import torch


class AceStepEngine:
    """Generates songs with one model.

    `name` is the model's name in the configuration. `cache` is the folder for downloaded checkpoints.
    """

    slots: int = 1
    """One, because the progress of decoding is reported by hooks on the VAE, which all songs share."""

    def __init__(self, name: str, args: ModelArgs, cache: Path) -> None:
        self._name = name
        self._args = args
        self._cache = cache
        self._pipe: Any = None
        self._variant: Variant = "turbo"

    def load(self, report: weights.Report) -> EngineFacts:
        """Loads the model. Reports the phases preflight, download, load and warm_up to `report`.

        Raises:
            LoadError: a subclass for each known cause, whose message says what to do; LoadError itself for an unknown cause.
        """
        self._pipe = None  # frees the memory of an earlier, failed load
        try:
            with import_errors():
                return self._load(report)
        except errors.LoadError:
            raise
        except Exception as error:
            raise unexpected_error(self._name, error) from error

    def _load(self, report: weights.Report) -> EngineFacts:
        report("preflight", None, "importing packages and looking for the device")
        versions = import_packages()
        device = choose_device(self._name, self._args)
        dtype = choose_dtype(self._args, device)
        set_threads(self._args, device)

        report("download", None, f"looking for {self._args.source}")
        folder = weights.resolve(self._name, self._args, self._cache, report)

        report("load", None, f"checking {folder}")
        with memory_errors(device, weights.weight_bytes(folder)):  # verify() maps the weight files into memory
            checkpoint = weights.verify(folder, self._args)
        needed = checkpoint.parameters * dtype.itemsize
        release_memory(device)
        require_memory(device, needed)
        report("load", None, f"loading {checkpoint.bytes / 1e9:.2f} GB to {device}")
        with memory_errors(device, needed):
            self._pipe = load_pipeline(checkpoint, device, dtype)
        self._variant = checkpoint.variant

        report("warm_up", None, "generating a short test song")
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
        """Returns one sentence for each part of `request` that this model will ignore."""
        found = [*self._truncation_warnings(request)]
        if request.guidance_scale is not None and self._variant == "turbo":
            found.append("guidance_scale is ignored by turbo models.")
        elif request.cfg_interval_start > request.cfg_interval_end:
            found.append("guidance is never applied: cfg_interval_start is greater than cfg_interval_end.")
        return tuple(found)

    def generate(self, request: MusicRequest, on_step: OnStep, stopped: Callable[[], bool]) -> Iterator[Song]:
        """Generates the variations of `request` and yields them one by one, in order. The request must have a `seed`.

        The same request gives the same bytes. Variation i depends on seed + i only, so a request for one song with that seed
        gives the same song, up to rounding (another batch size changes the order of additions). `stopped` is called between
        denoising steps and between decoding tiles.

        Raises:
            Stopped: `stopped()` returned true. The engine can run the next request.
            BadAudio: the model produced NaN, infinity or silence.
            OutOfDeviceMemory: the request does not fit into the device's memory.
            DeviceLost: the device failed. The process must be replaced.
        """
        with self._device_errors(request):
            latents = self._denoise(request, on_step, stopped)
        tiles = TileProgress(self._pipe.vae, latents, on_step, stopped)
        for i, seed in enumerate(seeds(request)):
            with self._device_errors(request):
                song = Song(seed=seed, samples=post_process(self._decode(latents[i : i + 1], tiles), request, seed))
            yield song
            del song  # frees up to 230 MB if the caller no longer needs them

    def _denoise(self, request: MusicRequest, on_step: OnStep, stopped: Callable[[], bool]) -> "torch.Tensor":
        """Returns the latents of all variations, of shape (variations, ceil(25 * duration), 64)."""
        import torch

        from serve_app.engine.ace_step.conditioning import open_slots, silent_context, silent_reference
        from serve_app.engine.ace_step.sampling import advance

        settings = sampling_settings(request, self._variant)
        stop_if(stopped)
        on_step("conditioning", 0, 1)
        with torch.inference_mode():
            context = silent_context(self._pipe, request.duration)
            slots = open_slots(self._pipe, request, settings, context, silent_reference(self._pipe))
            for step in range(1, settings.steps + 1):
                advance(self._pipe.transformer, slots)
                on_step("denoising", step, settings.steps)
                stop_if(stopped)
            return torch.cat([slot.latents for slot in slots])

    def _decode(self, latents: "torch.Tensor", tiles: "TileProgress") -> np.ndarray:
        """Returns raw float32 samples of shape (channels, frames). `latents` is one variation, of shape (1, latent frames, 64)."""
        import torch

        with torch.inference_mode(), tiles.reported():
            audio = self._pipe.vae.decode(latents.transpose(1, 2), return_dict=False)[0]
            samples: np.ndarray = audio[0].float().cpu().numpy()
        return samples

    def _self_test(self, report: weights.Report) -> None:
        """Generates SELF_TEST, a song of one second, and checks it.

        Raises:
            SelfTestFailed: the song has NaN or infinity, is silent, or has the wrong shape.
        """

        def on_step(stage: str, step: int, steps: int) -> None:
            report("warm_up", None, f"generating a short test song: {stage}, {step} of {steps}")

        try:
            songs = list(self.generate(SELF_TEST, on_step, lambda: False))
        except errors.BadAudio as error:
            raise errors.SelfTestFailed(
                f"The self-test of {self._name} failed: {error.message.removesuffix(' Try another seed.')} The checkpoint may "
                "be damaged, or not an ACE-Step 1.5 model: fetch it again. With dtype bfloat16, try float32."
            ) from error
        if [song.samples.shape for song in songs] != [(SAMPLE_RATE, 2)]:
            raise errors.SelfTestFailed(
                f"The self-test of {self._name} failed: one second of audio has the shape {songs[0].samples.shape} "
                f"instead of ({SAMPLE_RATE}, 2). Sophia supports only checkpoints for 48 kHz stereo."
            )

    def _truncation_warnings(self, request: MusicRequest) -> Iterator[str]:
        """Yields a warning for the prompt and for the lyrics, if they have more tokens than the model reads."""
        given_lyrics, language = lyrics_and_language(request)
        text, lyrics = self._pipe._format_prompt(
            request.prompt,
            given_lyrics,
            language,
            request.duration,
            self._pipe._get_task_instruction(request.task_type),
            request.bpm,
            request.keyscale,
            request.timesignature,
        )
        note = ", some of which belong to the instruction before the prompt; tempo and key come after the prompt"
        yield from self._truncation_warning("prompt", text, MAX_PROMPT_TOKENS, note)
        yield from self._truncation_warning("lyrics", lyrics, MAX_LYRICS_TOKENS, "")

    def _truncation_warning(self, field: str, text: str, limit: int, note: str) -> Iterator[str]:
        starts = [start for start, _ in self._pipe.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]]
        if len(starts) > limit:
            lost = " ".join(text[starts[limit] :].removesuffix("<|endoftext|>").split())[:40]
            yield (
                f"{field} was cut: the model reads {limit} of its {len(starts)} tokens{note}. "
                f"It ignores the text from here on: {lost!r}."
            )

    @contextlib.contextmanager
    def _device_errors(self, request: MusicRequest) -> Iterator[None]:
        """Turns torch's errors inside the block into DeviceLost or OutOfDeviceMemory, and frees unused device memory."""
        import torch

        device = self._pipe.device
        try:
            yield
            empty_cache(device)  # may raise the error of a kernel that failed earlier
        except torch.AcceleratorError as error:
            # The CUDA context of this process is broken: it can neither compute nor free memory.
            raise errors.DeviceLost(f"{device_name(device)} failed: {error}") from error
        except BaseException as error:
            release_memory(device)
            if not isinstance(error, RuntimeError) or not is_out_of_memory(error):
                raise
            raise errors.OutOfDeviceMemory(
                f"There is not enough memory on {device_name(device)} for {counted(request.variations, 'variation')} of "
                f"{request.duration:g} s. Ask for fewer variations or a shorter duration."
            ) from None  # the original traceback would keep the tensors alive


def _revision(args: ModelArgs, folder: Path) -> str | None:
    """Returns the commit of a fetched checkpoint, after which the cache names its folder; None for other checkpoints."""
    return folder.name if weights.has_commit(args.source) else None

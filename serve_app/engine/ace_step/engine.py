"""AceStepEngine: loads a checkpoint's components, as an AceStepPipeline, to one device, and generates songs with them.

Only one thread at a time may call an engine, because the progress of decoding is reported by hooks on the VAE, which all songs
share. torch and diffusers, and the files that import them, are imported inside functions, so that a missing or broken package
is reported as a LoadError.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from serve_app import errors, weights
from serve_app.audio import Song
from serve_app.config import AdapterArgs, ModelArgs, Variant
from serve_app.config.sources import PACKAGED
from serve_app.engine.ace_step.alignment_heads import alignment_heads, require_alignment
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
    preparing_progress,
    seeds,
    song_frames,
    stop_if,
)
from serve_app.engine.ace_step.loading import import_errors, import_packages, load_pipeline, unexpected_error
from serve_app.engine.ace_step.settings import ignored_settings, sampling_settings
from serve_app.engine.ace_step.work import Work, finished, part_progress, work_of
from serve_app.engine.protocol import NO_INPUTS, EngineFacts, OnStep, SongInputs
from serve_app.music import (
    SAMPLE_RATE,
    SELF_TEST,
    TASKS,
    ChunkMaskMode,
    MusicRequest,
    defaults_of,
)
from serve_app.plurals import counted

if TYPE_CHECKING:
    import torch

    from serve_app.engine.ace_step.adapters.adapters import Adapters
    from serve_app.engine.ace_step.sampling import Slot
    from serve_app.engine.ace_step.song_lyrics import SungLyrics

_TAIL_FRAMES: Final = 2
"""The decoder's edge is shorter than two latent frames, which are 80 ms."""


class AceStepEngine:
    """Generates songs with one model.

    `name` is the model's name in the configuration. `cache` is the folder for downloaded checkpoints.
    """

    slots: int = 1
    """One, because the progress of decoding is reported by hooks on the VAE, which all songs share."""

    def __init__(
        self,
        name: str,
        args: ModelArgs,
        cache: Path,
        known_adapters: Callable[[], Mapping[str, AdapterArgs]] | None = None,
    ) -> None:
        """`known_adapters` returns the model's adapters by name. Without it, they are those in `args`."""
        self._known_adapters = known_adapters or (lambda: args.adapters)
        self._name = name
        self._args = args
        self._cache = cache
        self._pipe: Any = None
        self._adapters: Any = None
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
        self._adapters = self._open_adapters()

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
            aligns_lyrics=alignment_heads(self._pipe.transformer) is not None,
            versions=versions,
            weights_bytes=checkpoint.bytes,
            **memory_facts(device),
        )

    def _open_adapters(self) -> "Adapters":
        from serve_app.engine.ace_step.adapters.adapters import Adapters

        def fetch(name: str, adapter: AdapterArgs, report: weights.Report) -> Path:
            return weights.adapter_file(self._name, name, adapter, self._cache, report)

        capacity = self._args.adapter_memory_mb * 1_000_000
        return Adapters(self._pipe.transformer, self._known_adapters, fetch, capacity)

    def warnings(self, request: MusicRequest) -> tuple[str, ...]:
        """Returns one sentence for each part of `request` that this model will ignore."""
        from serve_app.engine.ace_step.truncation import truncation_warnings

        return (*truncation_warnings(self._pipe, request), *ignored_settings(request, self._variant, self._args.source))

    def generate(
        self,
        request: MusicRequest,
        on_step: OnStep,
        stopped: Callable[[], bool],
        inputs: SongInputs = NO_INPUTS,
    ) -> Iterator[Song]:
        """Generates the variations of `request` and yields them one by one, in order. The request must have a `seed`.

        The task `stems` yields one song for each track, `best_of` only the best of the songs that it plays. The same request and
        inputs give the same bytes. Variation i depends on seed + i only, so a request for one song with that seed gives the same
        song, up to rounding (another batch size changes the order of additions). `stopped` is called between denoising steps and
        between decoding tiles.

        Raises:
            Stopped: `stopped()` returned true. The engine can run the next request.
            InvalidRequest: the model cannot do the task or align lyrics, or the source is missing or shorter than the request says.
            BadAdapter: an adapter that the request names no longer exists, or does not fit this model.
            LoadError: an adapter cannot be fetched.
            BadAudio: the model produced NaN, infinity or silence.
            OutOfDeviceMemory: the request does not fit into the device's memory.
            DeviceLost: the device failed. The process must be replaced.
        """
        with self._device_errors(request):
            made = self._prepared(request, inputs)
        parts = made.parts()
        for number, part in enumerate(parts):
            yield from self._songs(part, part_progress(on_step, number, len(parts)), stopped)

    def codes_of(self, samples: np.ndarray) -> tuple[int, ...]:
        """Returns the audio codes of `samples` (frames, 2) at 48 kHz. See `Engine`."""
        import torch

        from serve_app.engine.ace_step.sources import codes_of, encoded

        as_long = SELF_TEST.model_copy(update={"duration": len(samples) / SAMPLE_RATE})
        with self._device_errors(as_long), torch.inference_mode():
            codes = codes_of(self._pipe, encoded(self._pipe, samples))
        if codes is None:
            raise errors.InvalidRequest(f"source: {self._name} has no audio tokenizer, so it cannot hear recordings.")
        return codes[: 5 * len(samples) // SAMPLE_RATE]

    def _prepared(self, request: MusicRequest, inputs: SongInputs) -> Work:
        """Returns the work with the source's latents, so that they are encoded once."""
        import torch

        from serve_app.engine.ace_step.sources import encoded

        require_alignment(self._pipe.transformer, request)
        made = work_of(request, inputs, self._variant)
        if inputs.source is None or inputs.source_latents is not None or made.plan is None:
            return made
        with torch.inference_mode():
            latents = encoded(self._pipe, inputs.source)[0].float().cpu().numpy()
        return made.with_latents(latents)

    def _songs(self, work: Work, on_step: OnStep, stopped: Callable[[], bool]) -> Iterator[Song]:
        """Yields the variations of one part, which is no `stems`."""
        import torch

        from serve_app.engine.ace_step.song_lyrics import published, with_lyrics
        from serve_app.engine.ace_step.sources import codes_of

        request = work.request
        with self._device_errors(request):
            slots = self._denoise(work, on_step, stopped)
            sung = self._sung_lyrics(request, slots, stopped)
            numbers = published(request, sung)
            latents = torch.cat([slots[number].result for number in numbers])[:, : song_frames(request.duration)]
            padded = self._with_tail(latents)
        tiles = TileProgress(self._pipe.vae, padded, on_step, stopped)
        for i, number in enumerate(numbers):
            seed = seeds(request)[number]
            with self._device_errors(request):
                samples, gain = finished(self._decode(padded[i : i + 1], tiles), work, seed)
                song = Song(
                    seed=seed,
                    samples=samples,
                    track=work.stem,
                    latents=latents[i].float().cpu().numpy(),
                    codes=codes_of(self._pipe, latents[i : i + 1]) if request.keep_latents else None,
                    gain=gain,
                )
            yield with_lyrics(song, request, sung, number)
            del song, samples  # frees up to 230 MB if the caller no longer needs them

    def _denoise(self, work: Work, on_step: OnStep, stopped: Callable[[], bool]) -> "list[Slot]":
        """Returns the finished slots of all variations. They may be longer than the song."""
        import torch

        from serve_app.engine.ace_step.conditioning import open_slots
        from serve_app.engine.ace_step.sampling import advance
        from serve_app.engine.ace_step.sources import reference_latents
        from serve_app.engine.ace_step.tasks import canvas

        request = work.request
        settings = sampling_settings(request, self._variant, self._args.source)
        stop_if(stopped)
        adapters = self._adapters.blend(
            {use.name: use.scale for use in request.lora}, preparing_progress(on_step, stopped)
        )
        on_step("conditioning", 0, 1)
        with torch.inference_mode():
            made_on = canvas(self._pipe, request, work.plan, work.inputs, self._mask_mode(work))
            if self._args.source in PACKAGED:
                # the toy model ends a song where the text says that it ends, so an extension would be silent
                made_on = replace(made_on, text_duration=request.duration)
            reference = reference_latents(self._pipe, work.inputs.reference, seeds(request)[0])
            slots = open_slots(self._pipe, request, settings, made_on, reference)
            for slot in slots:
                slot.use(adapters)
            steps = len(slots[0].levels)
            for step in range(1, steps + 1):
                advance(self._pipe.transformer, slots, lambda: stop_if(stopped))
                on_step("denoising", step, steps)
                stop_if(stopped)
            return slots

    def _sung_lyrics(
        self, request: MusicRequest, slots: "list[Slot]", stopped: Callable[[], bool]
    ) -> "list[SungLyrics]":
        """Returns how each song follows its lyrics; nothing if the request does not ask for it."""
        import torch

        from serve_app.engine.ace_step.song_lyrics import sung_lyrics

        sung: list[SungLyrics] = []
        heads = alignment_heads(self._pipe.transformer)
        if request.needs_alignment and heads is not None:
            with torch.inference_mode():
                for slot, seed in zip(slots, seeds(request), strict=True):
                    sung.append(sung_lyrics(self._pipe, request, slot, seed, heads))
                    stop_if(stopped)
        return sung

    def _mask_mode(self, work: Work) -> ChunkMaskMode:
        """Returns the request's mask mode, or else `explicit` where a part is named or the model was trained with such masks."""
        names_part = work.plan is not None and bool(work.plan.windows)
        default = defaults_of(self._variant, self._args.source).chunk_mask_mode
        return work.request.chunk_mask_mode or ("explicit" if names_part else default)

    def _with_tail(self, latents: "torch.Tensor") -> "torch.Tensor":
        """Returns latents to decode: the toy model's with silence after them, since its decoder clicks at the end of its input."""
        import torch

        from serve_app.engine.ace_step.sources import silence

        if self._args.source not in PACKAGED:
            return latents
        tail = silence(self._pipe, _TAIL_FRAMES).to(latents)
        return torch.cat([latents, tail.expand(len(latents), -1, -1)], dim=1)

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

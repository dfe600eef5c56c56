"""The planner: prompts, grammar and decode loop together, as the interface that workers use."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, cast

from serve_app import errors
from serve_app.config import ModelArgs
from serve_app.config.language_model import LanguageModelArgs
from serve_app.engine.ace_step.device import (
    choose_device,
    device_name,
    free_memory,
    memory_errors,
    release_memory,
    set_threads,
)
from serve_app.engine.ace_step.loading import import_errors, limit_spinning, unexpected_error
from serve_app.engine.planner import grammar, prompts
from serve_app.engine.planner.grammar import CAPTION_TOKENS, Cursor, Grammar
from serve_app.engine.planner.prompts import INSTRUMENTAL, Prompt
from serve_app.engine.planner.protocol import OnToken, PlannerFacts, Sampling, Wishes
from serve_app.engine.planner.vocabulary import Vocabulary
from serve_app.music.plan import CODES_PER_SECOND, Plan
from serve_app.music.vocabulary import MAX_LYRICS_TOKENS, MAX_SEED, Language
from serve_app.weights import planner_files
from serve_app.weights.find import has_commit
from serve_app.weights.progress import Report

if TYPE_CHECKING:
    import torch

    from serve_app.engine.planner.decoding import DecodeLoop, Writing

_METADATA_TOKENS: Final = CAPTION_TOKENS + 256
"""More than a block of metadata has."""
_MOST_ROWS: Final = 32
_LEAST_LYRICS: Final = 64
"""With room for fewer tokens of lyrics than this, a prompt is too long."""
_SKIPPING: Final = ("bpm", "keyscale", "timesignature", "duration")
"""Where the author has decided all of these, the planner writes no metadata, as the original does."""


_Prompts = tuple[list[int], list[int]]
"""The tokens of a prompt, and of its unconditional side."""


class QwenPlanner:
    """Plans songs with a Qwen3 language model that was trained for it. Implements `protocol.Planner`.

    `name` is the name of the model whose planner this is, in the configuration; `args` are that model's settings, which also say
    where and with how many threads it runs. `cache` is the folder for downloaded checkpoints. `reserved` are the bytes of the
    device's memory that must be free when it is loaded.
    """

    def __init__(self, name: str, args: ModelArgs, planner: LanguageModelArgs, cache: Path, reserved: int = 0) -> None:
        self._name = name
        self._args = args
        self._planner = planner
        self._cache = cache
        self._reserved = reserved
        self._context = planner.context
        self._vocabulary: Any = None
        self._tables: Any = None
        self._loop: Any = None

    def load(self, report: Report) -> PlannerFacts:
        """Loads the language model. Reports the phases preflight, download, load and warm_up to `report`.

        Raises:
            LoadError: a subclass for each known cause, whose message says what to do; LoadError itself for an unknown cause.
        """
        self.close()
        try:
            with import_errors():
                return self._load(report)
        except errors.LoadError:
            self.close()
            raise
        except Exception as error:
            self.close()
            raise unexpected_error(f"the planner of {self._name}", error) from error

    def _load(self, report: Report) -> PlannerFacts:
        report("preflight", None, "looking for the device")
        limit_spinning()
        device = choose_device(self._name, self._args)
        dtype = _dtype(self._planner, device)
        set_threads(self._args, device)

        report("download", None, f"looking for the planner {self._planner.source}")
        folder = planner_files.resolve(self._name, self._planner, self._cache, report)

        report("load", None, f"checking {folder}")
        files = planner_files.verify(folder)
        self._vocabulary = Vocabulary(folder)
        _require_rows(self._vocabulary, files)
        self._context = min(self._planner.context, files.shape.context)
        weights = files.shape.parameters * dtype.itemsize
        row = files.shape.cache_numbers(1, self._context + 1) * dtype.itemsize
        release_memory(device)
        free = free_memory(device)
        rows = self._rows(free - weights, row)
        self._require_room(device, free, weights, rows * row)
        report("load", None, f"loading the planner, {files.bytes / 1e9:.2f} GB, to {device}")
        with memory_errors(device, weights + rows * row):
            self._loop = self._new_loop(files, device, dtype, rows)

            report("warm_up", None, "planning a second of music")
            self._self_test()
        return PlannerFacts(
            source=self._planner.source,
            revision=_revision(self._planner, folder),
            dtype=str(dtype).removeprefix("torch."),
            device=device_name(device),
            random=files.random,
            weights_bytes=files.bytes,
            cache_bytes=rows * row,
            rows=rows,
            versions={name: version(name) for name in ("torch", "tokenizers", "safetensors")},
            free_bytes=free,
        )

    def _new_loop(
        self, files: planner_files.PlannerFiles, device: "torch.device", dtype: "torch.dtype", rows: int
    ) -> "DecodeLoop":
        from serve_app.engine.planner.decoding import DecodeLoop
        from serve_app.engine.planner.network import Network

        self._tables = grammar.Tables(self._vocabulary)
        network = Network(files, device, dtype, rows=rows, context=self._context, graphs=self._planner.cuda_graphs)
        return DecodeLoop(network, self._tables, self._vocabulary.code_ids)

    def _rows(self, free: int, row: int) -> int:
        """How many sequences to decode at once, if each takes `row` bytes of the `free` ones."""
        if self._planner.rows != "auto":
            return self._planner.rows
        return max(2, min(_MOST_ROWS, min(free // 2, free - self._reserved) // row))

    def _require_room(self, device: "torch.device", free: int, weights: int, cache: int) -> None:
        """Raises DeviceMemory if `free` is less than weights and cache need and what is reserved."""
        if weights + cache + self._reserved <= free:
            return
        reserve = f", and {self._reserved / 1e9:.2f} GB must stay free to render songs" if self._reserved else ""
        raise errors.DeviceMemory(
            f"The planner needs {(weights + cache) / 1e9:.2f} GB on {device_name(device)}, {weights / 1e9:.2f} of them for its "
            f"weights and the rest for its cache{reserve}, but {free / 1e9:.2f} GB are free. Use a smaller planner, plan fewer "
            "songs at once (rows), or give it a device of its own (placement: own)."
        )

    def _self_test(self) -> None:
        """Plans a second of music. Raises SelfTestFailed if it fails."""
        wishes = Wishes(caption="piano", bpm=90, keyscale="C major", timesignature="4", duration=1.0)
        try:
            self.plan(wishes, lambda stage, done, most: None, lambda: False)
        except errors.GenerationError as error:
            if isinstance(error, errors.OutOfDeviceMemory):
                raise
            raise errors.SelfTestFailed(f"The planner of {self._name} cannot plan: {error.message}") from error

    def plan(self, wishes: Wishes, on_token: OnToken, stopped: Callable[[], bool]) -> Plan:
        """Plans a job's songs: metadata, unless its author has decided them, and then the codes of each song.

        The same wishes give the same plan. Song i has the codes of `seed` + i. A planned length is in whole seconds.

        Raises:
            Stopped: `stopped()` returned true, or the planner was closed.
            PlanTooLong: the prompt and the codes are longer than the planner's context.
            OutOfDeviceMemory, DeviceLost, GenerationError: see `errors`.
        """
        known = _known(wishes)
        if wishes.thinking == "none":
            return _plan(wishes, known)
        if any(name not in known for name in _SKIPPING):
            found = self._metadata(wishes, known, on_token, stopped)
            plan = _plan(wishes, {**found, **known})
            metadata: Mapping[str, Any] = {**found, **known, "duration": plan.duration}
        else:
            plan = _plan(wishes, known)
            metadata = {name: known[name] for name in _SKIPPING}
        if wishes.thinking == "metadata" or plan.duration is None:
            return plan
        return replace(plan, codes=self._codes(wishes, metadata, plan.duration, on_token, stopped))

    def format(self, wishes: Wishes, stopped: Callable[[], bool]) -> Plan:
        """Writes caption and lyrics anew, with metadata that suit them, and without codes. Raises what `plan` raises."""
        lyrics = INSTRUMENTAL if wishes.instrumental else None
        return self._song(prompts.format_prompt(wishes), wishes, lyrics, stopped)

    def sample(self, query: str, instrumental: bool, wishes: Wishes, stopped: Callable[[], bool]) -> Plan:
        """Makes up caption, lyrics and metadata for a description in plain words. Raises what `plan` raises."""
        wishes = replace(wishes, instrumental=instrumental)
        lyrics = INSTRUMENTAL if instrumental else None
        return self._song(prompts.sample_prompt(query, instrumental), wishes, lyrics, stopped)

    def understand(self, codes: tuple[int, ...], wishes: Wishes, stopped: Callable[[], bool]) -> Plan:
        """Returns caption, lyrics and metadata of a song, from its audio codes. Raises what `plan` raises.

        Also InvalidRequest for a code that the planner's tokenizer lacks. The original uses a temperature of 0.3 for it.
        """
        return self._song(prompts.understand_prompt(codes), wishes, None, stopped)

    def close(self) -> None:
        """Ends the loop. Calls that wait raise Stopped."""
        if self._loop is not None:
            self._loop.close()
            self._loop = None

    def _metadata(
        self, wishes: Wishes, known: Mapping[str, Any], on_token: OnToken, stopped: Callable[[], bool]
    ) -> dict[str, Any]:
        """Lets the model write the metadata that are not known."""
        asked = self._encoded(
            prompts.metadata_prompt(wishes), prompts.metadata_prompt_without(wishes), _METADATA_TOKENS
        )
        lines = grammar.metadata(self._tables, dict(grammar.known_values(known)), wishes.longest)
        writing = self._writing(asked, lines, wishes.sampling, wishes.seed, stopped)
        writing.on_token = lambda written: on_token("metadata", written, _METADATA_TOKENS)
        return self._parsed(self._written([writing])[0])[0]

    def _codes(
        self,
        wishes: Wishes,
        metadata: Mapping[str, Any],
        duration: float,
        on_token: OnToken,
        stopped: Callable[[], bool],
    ) -> tuple[tuple[int, ...], ...]:
        """Lets the model write the codes of all songs, at the same time."""
        count = int(CODES_PER_SECOND * duration)
        asked = self._encoded(prompts.codes_prompt(wishes, metadata), prompts.codes_prompt_without(wishes), count)
        progress = _SongProgress(on_token, wishes.songs, count)
        writings = []
        for song in range(wishes.songs):
            seed = (wishes.seed + song) % (MAX_SEED + 1)
            writing = self._writing(asked, grammar.codes(count), wishes.sampling, seed, stopped)
            writing.on_token = progress.of(song)
            writings.append(writing)
        return tuple(self._vocabulary.codes_of(tokens) for tokens in self._written(writings))

    def _song(self, prompt: Prompt, wishes: Wishes, lyrics: str | None, stopped: Callable[[], bool]) -> Plan:
        """Lets the model write metadata and lyrics. Lyrics that are given are not written."""
        asked = self._encoded(prompt, None, _METADATA_TOKENS + _LEAST_LYRICS)
        room = self._context - len(asked[0]) - _METADATA_TOKENS
        known = _known(wishes)
        lines = dict(grammar.known_values(known))
        song = grammar.song(self._tables, lines, wishes.longest, lyrics, min(room, MAX_LYRICS_TOKENS))
        unguided = replace(wishes.sampling, guidance=1.0)
        answers = self._written([self._writing(asked, song, unguided, wishes.seed, stopped)])
        found, written = self._parsed(answers[0])
        return _plan(replace(wishes, lyrics=written if lyrics is None else lyrics), {**found, **known})

    def _writing(
        self, asked: _Prompts, written: Grammar, sampling: Sampling, seed: int, stopped: Callable[[], bool]
    ) -> "Writing":
        from serve_app.engine.planner.decoding import Writing

        unconditional = asked[1] if sampling.guidance != 1 else None
        return Writing(asked[0], unconditional, Cursor(written), sampling, seed, stopped)

    def _written(self, writings: Sequence["Writing"]) -> list[list[int]]:
        """Returns the tokens of writings once all have finished. If one fails, the others are stopped."""
        if self._loop is None:
            raise errors.Stopped
        futures = [self._loop.submit(writing) for writing in writings]
        try:
            return [future.result() for future in futures]
        except BaseException:
            for writing in writings:
                writing.stopped = lambda: True
            raise

    def _parsed(self, tokens: list[int]) -> tuple[dict[str, Any], str]:
        """Returns the metadata and the lyrics in an answer."""
        end = tokens.index(self._vocabulary.thought)
        fields: dict[str, Any] = dict(grammar.parsed(self._vocabulary.decode(tokens[1:end])))
        fields["bpm"] = int(fields["bpm"])
        fields["duration"] = float(fields["duration"])
        rest = [token for token in tokens[end + 1 :] if token != self._vocabulary.end]
        return fields, grammar.parsed_lyrics(self._vocabulary.decode(rest))

    def _encoded(self, prompt: Prompt, other: Prompt | None, following: int) -> _Prompts:
        """Returns the tokens of a prompt and of its unconditional side.

        Raises PlanTooLong if the context has no room for `following` tokens after them.
        """
        encoded = [self._vocabulary.encode(side) for side in (prompt, other or ())]
        needed = max(len(side) for side in encoded) + following
        if needed > self._context:
            raise errors.PlanTooLong(
                f"The planner would need a sequence of {needed} tokens for this song, but has {self._context} (planner.context). "
                "Shorten the caption or the lyrics, or ask for a shorter song."
            )
        return encoded[0], encoded[1]


class _SongProgress:
    """Adds up the tokens of a job's songs, which are written at the same time."""

    def __init__(self, on_token: OnToken, songs: int, count: int) -> None:
        self._on_token = on_token
        self._written = [0] * songs
        self._most = songs * count

    def of(self, song: int) -> Callable[[int], None]:
        """Returns what to call with the number of tokens of one song."""

        def report(written: int) -> None:
            self._written[song] = written
            self._on_token("codes", sum(self._written), self._most)

        return report


def _known(wishes: Wishes) -> dict[str, Any]:
    """The metadata that the author has decided, by name."""
    language = wishes.language or ("unknown" if wishes.instrumental else None)
    known = {
        "bpm": wishes.bpm,
        "duration": wishes.duration,
        "keyscale": wishes.keyscale,
        "language": language,
        "timesignature": wishes.timesignature,
    }
    return {name: value for name, value in known.items() if value is not None}


def _plan(wishes: Wishes, fields: Mapping[str, Any]) -> Plan:
    """The plan with these metadata. What has not been decided stays None."""
    return Plan(
        caption=fields.get("caption") or wishes.caption,
        lyrics=wishes.lyrics,
        bpm=fields.get("bpm"),
        keyscale=fields.get("keyscale"),
        timesignature=cast('Literal["2", "3", "4", "6"] | None', fields.get("timesignature")),
        duration=fields.get("duration"),
        language=cast(Language, fields.get("language", "unknown")),
        instrumental=wishes.instrumental,
        seed=wishes.seed,
    )


def _dtype(args: LanguageModelArgs, device: "torch.device") -> "torch.dtype":
    """Returns the configured number format; `auto` means bfloat16 on CUDA and float32 on the CPU."""
    import torch

    wanted = args.dtype if args.dtype != "auto" else "bfloat16" if device.type == "cuda" else "float32"
    return torch.bfloat16 if wanted == "bfloat16" else torch.float32


def _require_rows(vocabulary: Vocabulary, files: planner_files.PlannerFiles) -> None:
    """Raises CorruptFile if the tokenizer has tokens that the network has no embedding for."""
    if vocabulary.size > files.shape.vocabulary:
        raise errors.CorruptFile(
            f"The tokenizer in {files.folder} has {vocabulary.size} tokens, but the weights only {files.shape.vocabulary}. Fetch "
            "or copy the checkpoint again."
        )


def _revision(args: LanguageModelArgs, folder: Path) -> str | None:
    """Returns the commit of a fetched checkpoint, after which the cache names its folder; None for other checkpoints."""
    return folder.name if has_commit(args.source) else None

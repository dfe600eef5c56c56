"""Where a model's checkpoint comes from: found or fetched, and checked before anything touches a device.

A checkpoint is a folder in the diffusers layout of AceStepPipeline. It comes from a Hugging Face repository, from a local
folder, or is the embedded one: ACE-Step 1.5's real classes with tiny random weights, built here.
"""

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote, urlsplit

from serve_app import errors
from serve_app.config import ModelArgs, Variant

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

Report = Callable[[str, float | None, str], None]
"""Called with a phase's name, its fraction done (0 to 1, None when unknown) and words."""

DEFAULT_REPOSITORY: Final = "ACE-Step/acestep-v15-xl-turbo-diffusers"
DEFAULT_REVISION: Final = "200ba991ae448051e14b0183157e35c2d27c9fb0"
"""The released checkpoint that `auto` means on a GPU, pinned to the commit that its users pin."""

# Component -> its class in model_index.json, for components that diffusers itself defines.
_DIFFUSERS_CLASSES: Final = {
    "vae": "AutoencoderOobleck",
    "transformer": "AceStepTransformer1DModel",
    "condition_encoder": "AceStepConditionEncoder",
    "audio_tokenizer": "AceStepAudioTokenizer",
    "audio_token_detokenizer": "AceStepAudioTokenDetokenizer",
}
_OPTIONAL: Final = ("audio_tokenizer", "audio_token_detokenizer")
_COMPONENTS: Final = (*_DIFFUSERS_CLASSES, "text_encoder", "tokenizer", "scheduler")

_RANDOM_MARKER: Final = "RANDOM_WEIGHTS"
_LISTING: Final = ".complete.json"

_CONVERT: Final = (
    "use a repository whose name ends in -diffusers, or convert it with scripts/convert_ace_step_to_diffusers.py of "
    "the diffusers repository"
)


@dataclass(frozen=True)
class CheckpointFacts:
    """What a checked checkpoint is. `bytes` is the size of its weight files."""

    folder: Path
    variant: Variant
    bytes: int
    numbers: Mapping[str, int]
    """How many numbers (parameters and buffers) the weight files hold, by component."""
    has_audio_tokenizer: bool
    random_weights: bool
    files: Mapping[str, int]
    """Weight files and their sizes in bytes, by path inside the folder."""

    @property
    def parameters(self) -> int:
        """All numbers of the checkpoint: times the bytes of a dtype, what a device must hold."""
        return sum(self.numbers.values())


def resolve(name: str, args: ModelArgs, cache: Path, report: Report) -> Path:
    """The folder that holds the checkpoint of the model called `name`; fetches or builds it when it is not there yet.

    `report` hears of it as phase "download". `auto` and `simulated` are settled by the caller and never come here.

    Raises:
        MissingFile: the local folder does not exist.
        UnknownRepository, UnknownRevision, HubUnreachable, DiskFull, WrongLayout: see `errors`.
    """
    if args.source == "embedded":
        return _embedded(cache, report)
    if args.source.startswith(("/", "~")):
        return _local(name, Path(args.source).expanduser())
    return _fetched(name, args.source, args.revision or _default_revision(args.source), cache / "hub", report)


def verify(folder: Path, args: ModelArgs) -> CheckpointFacts:
    """Checks a checkpoint in `folder` without reading its weights: milliseconds, whatever its size.

    Raises:
        WrongLayout, WrongClass, MissingFile, CorruptFile: naming the file and what to do.
    """
    index = _model_index(folder)
    present = [name for name in _COMPONENTS if _present(folder, name, index.get(name))]
    weights = {name: files for name in present if (files := _weight_files(folder, name))}
    numbers = {name: sum(_check_safetensors(file) for file in files) for name, files in weights.items()}
    sizes = {str(file.relative_to(folder)): file.stat().st_size for files in weights.values() for file in files}
    return CheckpointFacts(
        folder=folder,
        variant=args.variant or _variant(_read_json(folder / "transformer" / "config.json")),
        bytes=sum(sizes.values()),
        numbers=numbers,
        has_audio_tokenizer=all(name in present for name in _OPTIONAL),
        random_weights=(folder / _RANDOM_MARKER).exists(),
        files=sizes,
    )


# --- A local folder -------------------------------------------------------------------------------------------------


def _local(name: str, folder: Path) -> Path:
    if not folder.is_dir():
        raise errors.MissingFile(
            f"models.{name}.source: there is no folder {folder} on this node. Put the checkpoint there or name another."
        )
    return folder


# --- A Hugging Face repository --------------------------------------------------------------------------------------
#
# Not huggingface_hub's snapshot_download: since 2.x it downloads to a name of its own and deletes that on failure
# (huggingface_hub pull 4228), so an interrupted 10 GB file starts from nothing; and its progress comes in steps of 10 MB.


_PATIENCE: Final = 6
"""Connections in a row that may bring nothing; with the pauses between them, about a minute without network."""


def _default_revision(repository: str) -> str:
    return DEFAULT_REVISION if repository == DEFAULT_REPOSITORY else "main"


def _fetched(name: str, repository: str, revision: str, hub: Path, report: Report) -> Path:
    home = hub / repository.replace("/", "--")
    commit = _pinned_commit(revision)
    if commit and _is_complete(home / commit):
        return home / commit
    try:
        info = _repository_info(name, repository, revision)
    except errors.HubUnreachable:
        kept = _kept_commit(home, revision)
        if kept is None:
            raise
        return home / kept
    commit = cast(str, info.sha)
    sizes = _wanted_files(repository, info)
    _download(repository, commit, sizes, home / commit, report)
    _write_atomically(home / "refs" / quote(revision, safe=""), commit)
    return home / commit


def _pinned_commit(revision: str) -> str | None:
    return revision if re.fullmatch(r"[0-9a-f]{40}", revision) else None


def _kept_commit(home: Path, revision: str) -> str | None:
    """The commit that a branch or tag was at when it was fetched last, when that is still here and whole."""
    ref = home / "refs" / quote(revision, safe="")
    commit = ref.read_text() if ref.exists() else None
    return commit if commit and _is_complete(home / commit) else None


def _is_complete(folder: Path) -> bool:
    listing = folder / _LISTING
    return listing.exists() and all(_has(folder / name, size) for name, size in _read_json(listing).items())


def _has(file: Path, size: int) -> bool:
    return file.is_file() and file.stat().st_size == size


def _repository_info(name: str, repository: str, revision: str) -> "ModelInfo":
    """What the hub says of the repository. The messages never quote its answers: they could hold a token."""
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    setting = f"models.{name}.source"
    try:
        return HfApi(endpoint=_endpoint()).model_info(repository, revision=revision, files_metadata=True, timeout=15)
    except HFValidationError as error:
        raise errors.UnknownRepository(
            f"{setting}: {repository!r} is neither a repository id (owner/name) nor an absolute folder."
        ) from error
    except GatedRepoError as error:
        raise errors.UnknownRepository(
            f"{setting}: {repository} is gated. Accept its terms on {_host()} and set HF_TOKEN on every worker's node."
        ) from error
    except RevisionNotFoundError as error:
        raise errors.UnknownRevision(
            f"models.{name}.revision: {repository} has no revision {revision!r}. Give a commit, tag or branch that it has."
        ) from error
    except RepositoryNotFoundError as error:
        raise errors.UnknownRepository(
            f"{setting}: {_host()} knows no repository {repository}, or it is private: check the name, or set HF_TOKEN."
        ) from error
    except (HfHubHTTPError, OfflineModeIsEnabled, httpx2.TransportError) as error:
        raise errors.HubUnreachable(_unreachable(repository, error)) from error


def _endpoint() -> str | None:
    """Read at each call, not at import as huggingface_hub does, so that a running process can be pointed elsewhere."""
    return os.environ.get("HF_ENDPOINT")


def _host() -> str:
    return urlsplit(_endpoint() or "https://huggingface.co").hostname or "the hub"


def _unreachable(repository: str, error: Exception) -> str:
    return (
        f"{_host()} did not answer ({type(error).__name__}) and {repository} is not in the cache. Check this node's network "
        "and HF_ENDPOINT, or copy the checkpoint to a folder and name that as the source."
    )


def _wanted_files(repository: str, info: "ModelInfo") -> dict[str, int]:
    """The files that the pipeline reads, with their sizes in bytes; anything else in a repository stays there."""
    listed = {file.rfilename: file.size or 0 for file in info.siblings or ()}
    if "model_index.json" not in listed:
        raise _wrong_layout(repository, set(listed))
    # One folder deep and of a component's name: so a hub cannot have a file written elsewhere either.
    wanted = re.compile(rf"model_index\.json|({'|'.join(_COMPONENTS)})/[\w.-]+\.(json|safetensors|txt|model|jinja)")
    return {name: size for name, size in listed.items() if wanted.fullmatch(name)}


def _download(repository: str, commit: str, sizes: dict[str, int], folder: Path, report: Report) -> None:
    """Fetches what is missing into `folder`. Files go on where an earlier try stopped: a commit's files never change."""
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder, report):
        missing = {name: size for name, size in sizes.items() if not _has(folder / name, size)}
        _check_space(repository, missing, folder)
        progress = _Progress(report, sizes, folder)
        with _hub_errors(repository, progress), ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(_fetch, repository, commit, folder, *file, progress) for file in missing.items()]:
                done.result()
        _write_atomically(folder / _LISTING, json.dumps(sizes))


@contextlib.contextmanager
def _locked(folder: Path, report: Report) -> Iterator[None]:
    """One process at a time fills a folder; the others wait, and say so."""
    with (folder / ".lock").open("w") as lock:
        while not _try_lock(lock):
            report("download", None, "another worker on this node is fetching the checkpoint")
            time.sleep(0.5)
        yield


def _try_lock(lock: IO[str]) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _check_space(repository: str, missing: dict[str, int], folder: Path) -> None:
    needed = sum(size - _partial_size(folder / name) for name, size in missing.items())
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise errors.DiskFull(
            f"{repository} needs {_size(needed)} more in {folder}, where {_size(free)} are free. Make room or set data_dir."
        )


def _partial(target: Path) -> Path:
    return target.with_name(target.name + ".partial")


def _partial_size(target: Path) -> int:
    partial = _partial(target)
    return partial.stat().st_size if partial.exists() else 0


class _Progress:
    """Adds up bytes from several threads and reports them at most twice a second."""

    def __init__(self, report: Report, sizes: dict[str, int], folder: Path):
        self.total = sum(sizes.values())
        self.done = sum(
            size if _has(folder / name, size) else _partial_size(folder / name) for name, size in sizes.items()
        )
        self._report, self._lock, self._last = report, threading.Lock(), 0.0
        self.add(0)

    def add(self, count: int) -> None:
        with self._lock:
            self.done += count
            if time.monotonic() - self._last > 0.5 or self.done == self.total:
                self._last = time.monotonic()
                fraction = self.done / max(self.total, 1)
                self._report("download", fraction, f"downloading {fraction:.0%} of {_size(self.total)}")


@contextlib.contextmanager
def _hub_errors(repository: str, progress: _Progress) -> Iterator[None]:
    import httpx2

    try:
        yield
    except httpx2.HTTPError as error:
        raise errors.HubUnreachable(
            f"{_host()} stopped sending {repository} ({type(error).__name__}). {_size(progress.done)} of "
            f"{_size(progress.total)} are kept; the next start goes on from there."
        ) from error
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise errors.DiskFull(
            f"The disk was full after {_size(progress.done)} of {_size(progress.total)} of {repository}. Make room; the "
            "next start goes on from there."
        ) from error


def _fetch(repository: str, commit: str, folder: Path, name: str, size: int, progress: _Progress) -> None:
    """Fetches one file, through any number of broken connections as long as each brings something."""
    import httpx2
    from huggingface_hub import hf_hub_url

    url = hf_hub_url(repository, name, revision=commit, endpoint=_endpoint())
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    failures = 0
    with _partial(folder / name).open("ab") as out:
        while (before := out.tell()) < size:
            try:
                _stream(url, out, progress)
            except httpx2.HTTPError:
                if failures == _PATIENCE:
                    raise
            failures = 0 if out.tell() > before else failures + 1
            if out.tell() < size:
                time.sleep(0.5 * 2**failures)
    _partial(folder / name).replace(folder / name)


def _stream(url: str, out: IO[bytes], progress: _Progress) -> None:
    from huggingface_hub import get_session, get_token

    start, token = out.tell(), get_token()
    headers = {"Accept-Encoding": "identity", "Range": f"bytes={start}-"}
    if token:  # httpx2 drops it when the hub redirects to its storage, on another host
        headers["Authorization"] = f"Bearer {token}"
    with get_session().stream("GET", url, headers=headers, timeout=30, follow_redirects=True) as answer:
        answer.raise_for_status()
        if start and answer.status_code == 200:  # the server does not know ranges: begin again
            out.truncate(0)
            progress.add(-start)
        for chunk in answer.iter_bytes():
            out.write(chunk)
            progress.add(len(chunk))


# --- Checking -------------------------------------------------------------------------------------------------------


def _model_index(folder: Path) -> dict[str, Any]:
    file = folder / "model_index.json"
    if not file.exists():
        raise _wrong_layout(str(folder), {path.name for path in folder.iterdir()})
    index = _read_json(file)
    if index.get("_class_name") != "AceStepPipeline":
        raise errors.WrongClass(
            f"{file} names the pipeline {index.get('_class_name')!r}; Sophia plays AceStepPipeline. Name another source."
        )
    return index


def _wrong_layout(where: str, names: set[str]) -> errors.LoadError:
    """Why there is no model_index.json, told from the other names at the top."""
    tops = {name.split("/")[0] for name in names}
    if {"transformer", "condition_encoder"} <= tops:
        return errors.MissingFile(f"{where} lacks model_index.json: fetch or copy the checkpoint again.")
    if tops & {"silence_latent.pt", "Qwen3-Embedding-0.6B"} or any(name.endswith(".safetensors") for name in tops):
        return errors.WrongLayout(f"{where} is in ACE-Step's original layout, which diffusers cannot load: {_CONVERT}.")
    return errors.WrongLayout(f"{where} has no model_index.json, so it is no diffusers checkpoint: {_CONVERT}.")


def _present(folder: Path, name: str, entry: list[str | None] | None) -> bool:
    """Whether model_index.json has the component, of the expected class, with its configuration beside it."""
    if not entry or entry[1] is None:
        if name in _OPTIONAL:
            return False
        raise errors.MissingFile(
            f"{folder / 'model_index.json'} names no {name}: fetch or convert the checkpoint again."
        )
    _check_class(folder, name, entry[1])
    for file in _config_files(folder, name):
        _need(file)
    return True


def _check_class(folder: Path, name: str, found: str) -> None:
    expected = _DIFFUSERS_CLASSES.get(name, {"text_encoder": "Qwen3Model"}.get(name, found))
    if found != expected:
        raise errors.WrongClass(
            f"{folder / 'model_index.json'} names the class {found} for {name}; ACE-Step 1.5 has {expected}. Name another "
            "source, or fetch the checkpoint again."
        )


def _config_files(folder: Path, name: str) -> list[Path]:
    if name == "scheduler":
        return [folder / name / "scheduler_config.json"]
    if name == "tokenizer":
        whole = (folder / name / "tokenizer.json").exists() or not (folder / name / "vocab.json").exists()
        return [folder / name / file for file in (("tokenizer.json",) if whole else ("vocab.json", "merges.txt"))]
    return [folder / name / "config.json"]


def _weight_files(folder: Path, name: str) -> list[Path]:
    """A component's weights: one file, or the shards that its index names."""
    if name in ("scheduler", "tokenizer"):
        return []
    whole = folder / name / ("model" if name == "text_encoder" else "diffusion_pytorch_model")
    index = whole.with_name(whole.name + ".safetensors.index.json")
    if not index.exists():
        return [_need(whole.with_name(whole.name + ".safetensors"))]
    shards = sorted(set(_read_json(index).get("weight_map", {}).values()))
    return [_need(index.with_name(shard)) for shard in shards]


def _need(file: Path) -> Path:
    if not file.exists():
        raise errors.MissingFile(f"{file} is missing: fetch or copy the checkpoint again; what is there is kept.")
    return file


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(_need(file).read_bytes())
    except ValueError as error:
        raise errors.CorruptFile(f"{file} is not JSON ({error}): {_AGAIN}") from error
    if not isinstance(content, dict):
        raise errors.CorruptFile(f"{file} holds no JSON object: {_AGAIN}")
    return content


_AGAIN: Final = "delete it and fetch or copy it again."


def _check_safetensors(file: Path) -> int:
    """How many numbers `file` holds, after comparing its size with its header, which finds a cut file at once.

    The format (https://github.com/huggingface/safetensors#format): 8 bytes little-endian length N, N bytes of JSON with
    each tensor's `shape` and `data_offsets` [begin, end), then the data.
    """
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            # The format allows no header over 100 MB; a garbage length must not be allocated.
            header: dict[str, Any] = json.loads(stream.read(length if length <= 100_000_000 else 0))
        tensors = [tensor for key, tensor in header.items() if key != "__metadata__"]
        expected = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors), default=0)
        numbers = sum(_product(tensor["shape"]) for tensor in tensors)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise errors.CorruptFile(f"{file} has no readable safetensors header: {_AGAIN}") from error
    if size != expected:
        raise errors.CorruptFile(f"{file} has {size} bytes where its header says {expected}: {_AGAIN}")
    return numbers


def _product(shape: list[int]) -> int:
    count = 1
    for side in shape:
        count *= side
    return count


def _variant(transformer: Mapping[str, Any]) -> Variant:
    """turbo, base or sft, from the transformer's `is_turbo` and `model_version`, which diffusers' converter writes."""
    said = str(transformer.get("model_version") or "").lower()
    if transformer.get("is_turbo") or "turbo" in said:
        return "turbo"
    return "sft" if "sft" in said else "base"


# --- The embedded checkpoint ----------------------------------------------------------------------------------------

_VOCABULARY: Final = (
    "# Instruction # Caption # Metas bpm timesignature keyscale duration seconds # Languages # Lyric [verse] [chorus]"
)
_END: Final = "<|endoftext|>"
_WIDTH: Final[dict[str, Any]] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
}
_ROPE: Final[dict[str, Any]] = {"rope_theta": 1e6, "sliding_window": 128}
_LATENT: Final[dict[str, Any]] = {
    "audio_acoustic_hidden_dim": 64,
    "pool_window_size": 5,
    "num_attention_pooler_hidden_layers": 1,
}
_CODES: Final[dict[str, Any]] = {
    "fsq_dim": 64,
    "fsq_input_levels": [8, 8, 8, 5, 5, 5],
    "fsq_input_num_quantizers": 1,
}
_TEXT: Final[dict[str, Any]] = {"num_hidden_layers": 2, "max_position_embeddings": 4096}
_CONDITION: Final[dict[str, Any]] = {
    "text_hidden_dim": 64,
    "timbre_hidden_dim": 64,
    "num_lyric_encoder_hidden_layers": 2,
    "num_timbre_encoder_hidden_layers": 2,
}
_TRANSFORMER: Final[dict[str, Any]] = {
    "num_hidden_layers": 4,
    "in_channels": 192,
    "audio_acoustic_hidden_dim": 64,
    "patch_size": 2,
    "encoder_hidden_size": 64,
    "is_turbo": True,
    "model_version": "turbo",
}
# 2 * 4 * 4 * 6 * 10 = 1920 samples a latent, so 25 latents a second at 48 kHz, as in the released model.
_VAE: Final[dict[str, Any]] = {
    "encoder_hidden_size": 8,
    "downsampling_ratios": [2, 4, 4, 6, 10],
    "channel_multiples": [1, 2, 2, 4, 4],
    "decoder_channels": 4,
    "decoder_input_channels": 64,
    "audio_channels": 2,
    "sampling_rate": 48_000,
}


def _embedded(cache: Path, report: Report) -> Path:
    """Builds the embedded checkpoint where it is not there yet; of several processes at once, the first to finish wins."""
    folder = cache / f"embedded-{_recipe_hash()}"
    if not folder.exists():
        report("download", None, "building the embedded checkpoint (tiny random weights)")
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix="building-") as scratch:
            _build(Path(scratch) / "checkpoint")
            # Renaming onto a folder that has files fails: another process was faster, with the same bytes.
            with contextlib.suppress(OSError):
                (Path(scratch) / "checkpoint").rename(folder)
    report("download", 1.0, "the embedded checkpoint is here")
    return folder


def _recipe_hash() -> str:
    """Names what the embedded checkpoint is made from: its numbers, and the libraries that draw and write them."""
    libraries = [version(name) for name in ("torch", "diffusers", "transformers")]
    recipe = [_VOCABULARY, _WIDTH, _ROPE, _LATENT, _CODES, _TEXT, _CONDITION, _TRANSFORMER, _VAE, libraries]
    return hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:12]


def _build(folder: Path) -> None:
    import torch
    from transformers.utils import logging

    logging.disable_progress_bar()

    # A generator of its own is not possible (modules initialise from the global one), so that one's state is given back.
    with torch.random.fork_rng(devices=[]), quiet_libraries():
        torch.manual_seed(0)
        _pipeline().save_pretrained(folder)
    (folder / _RANDOM_MARKER).write_text("These weights are random: what this checkpoint plays is noise.\n")


@contextlib.contextmanager
def quiet_libraries() -> Iterator[None]:
    """Hushes what libraries say of themselves while models are made: it is about their own code, not ours."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=FutureWarning)
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        yield


def _pipeline() -> Any:
    from diffusers import (
        AceStepPipeline,
        AceStepTransformer1DModel,
        AutoencoderOobleck,
        FlowMatchEulerDiscreteScheduler,
    )
    from diffusers.pipelines.ace_step import (
        AceStepAudioTokenDetokenizer,
        AceStepAudioTokenizer,
        AceStepConditionEncoder,
    )
    from transformers import Qwen3Config, Qwen3Model

    words = _tokenizer()
    return AceStepPipeline(
        tokenizer=words,
        text_encoder=Qwen3Model(Qwen3Config(**_WIDTH, **_TEXT, vocab_size=len(words))),
        condition_encoder=AceStepConditionEncoder(**_WIDTH, **_ROPE, **_CONDITION),
        transformer=AceStepTransformer1DModel(**_WIDTH, **_ROPE, **_TRANSFORMER),
        vae=AutoencoderOobleck(**_VAE),
        scheduler=FlowMatchEulerDiscreteScheduler(num_train_timesteps=1, shift=1.0),
        audio_tokenizer=AceStepAudioTokenizer(**_WIDTH, **_ROPE, **_LATENT, **_CODES),
        audio_token_detokenizer=AceStepAudioTokenDetokenizer(**_WIDTH, **_ROPE, **_LATENT),
    )


def _tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    # All 256 bytes are tokens, so that any text in any language can be read. Sorted: the bindings' order changes.
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=[_END], initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([_VOCABULARY], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=_END, pad_token=_END)


# --- Small things ---------------------------------------------------------------------------------------------------


def _write_atomically(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f"{file.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(file)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"

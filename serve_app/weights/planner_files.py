"""The checkpoint of a planner: a folder of a Qwen3 language model with `config.json`, safetensors files and `tokenizer.json`.

It comes from the same kinds of source as a model's checkpoint.
"""

import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, Final
from urllib.parse import quote

from serve_app import errors
from serve_app.config.language_model import LanguageModelArgs
from serve_app.config.sources import EMBEDDED, RANDOM
from serve_app.weights import embedded, hub, random_planner
from serve_app.weights.cache import Plan, Remote, fetch, plan
from serve_app.weights.find import disk_errors, is_local, is_online, remote_of
from serve_app.weights.layout import AGAIN, RANDOM_MARKER, need, read_json
from serve_app.weights.progress import Report

CONFIG: Final = "config.json"
_TOKENIZER: Final = "tokenizer.json"
_INDEX: Final = "model.safetensors.index.json"
_SUFFIX: Final = ".safetensors"
_USUAL_NAME: Final = "5Hz-lm"
"""Part of the name of a planner's folder in ACE-Step's repositories, which also hold other models."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The sizes of a Qwen3 language model, by their meaning in its `config.json`."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    eps: float
    rope_theta: float
    context: int
    """The longest sequence of tokens."""
    tied: bool
    """Whether the head is the table of embeddings."""

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """The model's tensors by name, without the prefix `model.`, and their shapes."""
        queries = self.heads * self.head_dim
        keys = self.kv_heads * self.head_dim
        layer = {
            "input_layernorm.weight": (self.hidden,),
            "self_attn.q_proj.weight": (queries, self.hidden),
            "self_attn.k_proj.weight": (keys, self.hidden),
            "self_attn.v_proj.weight": (keys, self.hidden),
            "self_attn.q_norm.weight": (self.head_dim,),
            "self_attn.k_norm.weight": (self.head_dim,),
            "self_attn.o_proj.weight": (self.hidden, queries),
            "post_attention_layernorm.weight": (self.hidden,),
            "mlp.gate_proj.weight": (self.intermediate, self.hidden),
            "mlp.up_proj.weight": (self.intermediate, self.hidden),
            "mlp.down_proj.weight": (self.hidden, self.intermediate),
        }
        layers = {f"layers.{at}.{name}": shape for at in range(self.layers) for name, shape in layer.items()}
        table = (self.vocabulary, self.hidden)
        head = {} if self.tied else {"lm_head.weight": table}
        return {"embed_tokens.weight": table, **layers, "norm.weight": (self.hidden,), **head}

    @property
    def parameters(self) -> int:
        """How many numbers the model holds."""
        return sum(math.prod(shape) for shape in self.tensors().values())

    def cache_numbers(self, rows: int, context: int) -> int:
        """How many numbers the key-value cache of `rows` sequences of `context` tokens holds."""
        return 2 * self.layers * rows * self.kv_heads * context * self.head_dim


@dataclass(frozen=True, slots=True)
class PlannerFiles:
    """A planner's checkpoint that passed `verify`."""

    folder: Path
    shape: Shape
    places: Mapping[str, tuple[Path, str]]
    """The file of each of the shape's tensors, and its name there."""
    bytes: int
    """Size of all weight files."""
    random: bool
    """Whether the weights are random."""


def resolve(name: str, args: LanguageModelArgs, cache: Path, report: Report, online: bool | None = None) -> Path:
    """Returns the folder with the planner of model `name`. Fetches or builds it if it is not on this node.

    `report` and `online` are those of `find.resolve`. The caller must have resolved the source `auto`.

    Raises:
        MissingFile: the local folder does not exist, or no folder of the source holds a language model.
        WrongLayout: the source has several, and the settings name none.
        UnknownRepository, UnknownRevision, HubTokenRefused, HubUnreachable, DiskFull, CorruptFile: see `errors`.
    """
    with disk_errors(cache):
        if args.source == EMBEDDED:
            return fetch(embedded.planned(cache / embedded.PLANNER, embedded.PLANNER), report)
        if args.source == RANDOM:
            return random_planner.build(cache, report)
        if is_local(args.source):
            return _local(args)
        return fetch(_planned(name, args, cache, is_online() if online is None else online), report)


def verify(folder: Path) -> PlannerFiles:
    """Checks the checkpoint in `folder` without reading its weights.

    Raises:
        MissingFile, CorruptFile, WrongClass: the message names the file and what to do.
    """
    shape = _shape(folder / CONFIG)
    need(folder / _TOKENIZER)
    files = _weight_files(folder)
    found = {_plain(name): (file, name, size) for file in files for name, size in _headers(file)}
    for name, expected in shape.tensors().items():
        if name not in found:
            raise errors.CorruptFile(f"The weights in {folder} lack the tensor {name}: {AGAIN}")
        file, _, size = found[name]
        if size != expected:
            raise errors.CorruptFile(
                f"{file}: {name} has the shape {list(size)}, but {CONFIG} says {list(expected)}: {AGAIN}"
            )
    return PlannerFiles(
        folder=folder,
        shape=shape,
        places={name: found[name][:2] for name in shape.tensors()},
        bytes=sum(file.stat().st_size for file in files),
        random=(folder / RANDOM_MARKER).exists(),
    )


def _shape(file: Path) -> Shape:
    config = read_json(file)
    if config.get("model_type") != "qwen3":
        raise errors.WrongClass(
            f"{file} is the configuration of a {config.get('model_type')!r} model, but planners are qwen3 models. Set another "
            "source for the planner."
        )
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (
        rope.get("rope_type", "default") != "default"
        or config.get("attention_bias")
        or config.get("use_sliding_window")
    ):
        raise errors.WrongClass(
            f"{file} has attention biases, a sliding window or scaled positions, which Sophia's planner does not compute. Set "
            "another source for the planner."
        )
    try:
        return Shape(
            vocabulary=int(config["vocab_size"]),
            hidden=int(config["hidden_size"]),
            layers=int(config["num_hidden_layers"]),
            heads=int(config["num_attention_heads"]),
            kv_heads=int(config["num_key_value_heads"]),
            head_dim=int(config["head_dim"]),
            intermediate=int(config["intermediate_size"]),
            eps=float(config.get("rms_norm_eps", 1e-6)),
            rope_theta=float(rope.get("rope_theta") or config["rope_theta"]),
            context=int(config["max_position_embeddings"]),
            tied=bool(config.get("tie_word_embeddings", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise errors.CorruptFile(
            f"{file} is not the configuration of a Qwen3 model ({error!r} is missing or wrong): {AGAIN}"
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    index = folder / _INDEX
    if index.exists():
        return [need(folder / name) for name in sorted(set(read_json(index).get("weight_map", {}).values()))]
    return [need(folder / "model.safetensors")]


def _headers(file: Path) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yields the tensors of a safetensors file and their shapes. Raises CorruptFile."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="np") as tensors:
            for name in tensors.offset_keys():
                yield name, tuple(tensors.get_slice(name).get_shape())
    except SafetensorError as error:
        reason = str(error).removeprefix("Error while deserializing header: ")
        raise errors.CorruptFile(
            f"{file} is truncated or corrupt ({file.stat().st_size} bytes; safetensors reports: {reason}): {AGAIN}"
        ) from error


def _plain(name: str) -> str:
    """A tensor's name without the prefix that it has in the files of a whole language model, but not in those of its trunk."""
    return name.removeprefix("model.")


def _local(args: LanguageModelArgs) -> Path:
    place = Path(args.source).expanduser()
    if not place.is_dir():
        raise errors.MissingFile(
            f"The planner's folder {place} does not exist on this node. Put the language model there, or set another source."
        )
    names = {str(file.relative_to(place)) for file in [*place.glob("*"), *place.glob("*/*")]}
    return place / _choice(str(place), args, names)


def _planned(name: str, args: LanguageModelArgs, cache: Path, online: bool) -> Plan:
    revision = args.revision or hub.default_revision(args.source)
    home = cache / "planners" / quote(f"{args.source}/{args.folder or ''}", safe="")
    return plan(home, revision, hub.commit_of(revision), partial(_remote, name, args, revision, online))


def _remote(name: str, args: LanguageModelArgs, revision: str, online: bool) -> Remote:
    """Returns the files of the language model in a source, as if it had no others."""
    source = remote_of(name, f"models.{name}.planner.source", args.source, revision, online)

    def inside() -> PurePosixPath:
        return _choice(source.title, args, source.files)

    def files() -> Mapping[str, Any]:
        folder = inside()
        here = {file: PurePosixPath(file) for file in source.files}
        return {
            path.name: source.files[file] for file, path in here.items() if path.parent == folder and _wanted(path.name)
        }

    return replace(source, list_files=files, read=lambda file, start: source.read(str(inside() / file), start))


def _wanted(name: str) -> bool:
    return name in (CONFIG, _TOKENIZER, _INDEX) or name.endswith(_SUFFIX)


def _choice(title: str, args: LanguageModelArgs, names: Collection[str]) -> PurePosixPath:
    """Returns the folder of a source that holds the language model. `names` are its files."""
    with_config = {PurePosixPath(name).parent for name in names if PurePosixPath(name).name == CONFIG}
    with_tokenizer = {PurePosixPath(name).parent for name in names if PurePosixPath(name).name == _TOKENIZER}
    folders = with_config & with_tokenizer
    root = PurePosixPath(args.folder or ".")
    if root in folders:
        return root
    if args.folder:
        raise errors.MissingFile(f"{title} has no language model in {args.folder} ({CONFIG} and {_TOKENIZER}).")
    usual = sorted(str(folder) for folder in folders if _USUAL_NAME in folder.name)
    if len(usual) > 1:
        raise errors.WrongLayout(
            f"{title} has several language models. Set the planner's folder to one of {', '.join(usual)}."
        )
    if not usual:
        raise errors.MissingFile(f"{title} has no language model ({CONFIG} and {_TOKENIZER} in one folder).")
    return PurePosixPath(usual[0])

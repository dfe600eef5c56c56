"""Puts the parts of a checkpoint together as a checkpoint in diffusers' layout, whose files are read from the parts' files."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import PurePosixPath
from typing import Any, Final

from serve_app import errors
from serve_app.config import Variant
from serve_app.weights.cache import Remote
from serve_app.weights.convert import configs, names, parts
from serve_app.weights.convert.component import (
    Component,
    Found,
    all_tensors,
    copied,
    laid_out,
    read_config,
    read_set,
    title_of,
)
from serve_app.weights.convert.content import Content
from serve_app.weights.convert.headers import Tensor, Tensors, json_content
from serve_app.weights.convert.silence import NAME as SILENCE
from serve_app.weights.convert.silence import read_silence
from serve_app.weights.layout import DIFFUSERS_CLASSES, OPTIONAL

RECORD: Final = "conversion.json"
"""The file of a converted checkpoint that says where its parts come from, and which tensors were not used."""

ORIGINAL_CONFIG: Final = "transformer/original_config.json"
"""The original's config.json, where there is one."""

_PIPELINE_CLASSES: Final = ("condition_encoder", *OPTIONAL)
"""Components whose classes diffusers defines beside the pipeline, not among its models."""

_VARIANT: Final = re.compile(r"(?<![a-z])(turbo|sft|base)(?![a-z])")
"""A variant as a word of a name."""

_ANY_TOKENIZER: Final = "PreTrainedTokenizerFast"


@dataclass(frozen=True)
class Sources:
    """Where the parts of a checkpoint come from."""

    main: Remote
    dit: parts.Dit
    """The diffusion model chosen in `main`."""
    parts_from: Callable[[], Remote]
    """Returns the source of what `main` lacks. Called only if it lacks something. May raise a LoadError."""
    variant: Variant | None
    """The model's setting `variant`, for files that do not say."""


def converted_files(sources: Sources) -> dict[str, Content]:
    """Returns the files of the converted checkpoint by their paths. Reads headers and small files only.

    Raises:
        WrongTensors, MissingFile, CorruptFile, WrongLayout, LoadError.
    """
    model, unused = _model(sources)
    components = {
        **_dit_components(sources, model),
        "vae": _vae(sources, model),
        "text_encoder": _text_encoder(sources, model),
        "tokenizer": _tokenizer(sources),
    }
    scheduler = {"scheduler/scheduler_config.json": json_content(configs.SCHEDULER)}
    files = {name: content for component in components.values() for name, content in component.files.items()}
    record = _record(sources, components, unused)
    index = {"model_index.json": json_content(_index(components))}
    return {**files, **scheduler, **index, **_kept_config(sources), RECORD: json_content(record)}


def _kept_config(sources: Sources) -> dict[str, Content]:
    """The original's configuration, as it is: it says more than diffusers' classes take."""
    config = sources.dit.weights.config
    return {ORIGINAL_CONFIG: copied(sources.main, config)} if config and sources.dit.layout == "original" else {}


def _model(sources: Sources) -> tuple[dict[str, Found], list[str]]:
    """Returns what the files of the diffusion model hold, by component, and the names of tensors that belong to none."""
    if sources.dit.layout == "diffusers":
        return _diffusers_model(sources), []
    source = sources.main
    tensors = all_tensors(source, sources.dit.weights)
    title = title_of(source, sources.dit.weights)
    config = read_config(source, sources.dit.weights.config)
    if not any(name.startswith(names.COMFYUI_DIT) for name in tensors):
        split, left = names.split_model(tensors)
        return {name: Found(title, part, config) for name, part in split.items() if part}, sorted(left)
    split, left = names.split_model(names.without_prefix(tensors, names.COMFYUI_DIT))
    bundled = {
        **split,
        "vae": names.autoencoder_tensors(names.without_prefix(tensors, names.COMFYUI_VAE)),
        "text_encoder": names.text_encoder_tensors(names.without_prefix(tensors, names.COMFYUI_TEXT)),
    }
    known = (names.COMFYUI_DIT, names.COMFYUI_VAE, names.COMFYUI_TEXT)
    others = [name for name in tensors if not name.startswith(known)]
    return {name: Found(title, part, config) for name, part in bundled.items() if part}, sorted([*left, *others])


def _diffusers_model(sources: Sources) -> dict[str, Found]:
    sets = {
        name: weights
        for name in DIFFUSERS_CLASSES
        if name != "vae" and (weights := parts.find_component(sources.main.files, sources.dit, name))
    }
    return {name: read_set(sources.main, weights, names.component_tensors) for name, weights in sets.items()}


def _dit_components(sources: Sources, model: Mapping[str, Found]) -> dict[str, Component]:
    """The components of the diffusion model. The audio tokenizers are left out unless both are there."""
    empty = Found(title_of(sources.main, sources.dit.weights), {}, {})
    transformer = model.get("transformer", empty)
    encoder = _with_silence(sources, model.get("condition_encoder", empty))
    found = {"transformer": transformer, "condition_encoder": encoder}
    made = {
        "transformer": _transformer_config(sources, transformer),
        "condition_encoder": configs.condition_encoder(encoder.title, encoder.tensors, encoder.config),
    }
    if all(name in model for name in OPTIONAL):
        found |= {name: model[name] for name in OPTIONAL}
        made |= _tokenizer_configs(found)
    if sources.dit.layout == "diffusers":
        # Elsewhere the components share one configuration, whose layer_types are the transformer's.
        made = {name: config | {"layer_types": found[name].config.get("layer_types")} for name, config in made.items()}
    return {name: laid_out(name, found[name], config) for name, config in made.items()}


def _tokenizer_configs(found: Mapping[str, Found]) -> dict[str, configs.Config]:
    """The configurations of the audio tokenizers. Only the detokenizer's shapes show how many latents a code has."""
    tokenizer = found["audio_tokenizer"]
    detokenizer = found["audio_token_detokenizer"]
    back = configs.audio_token_detokenizer(detokenizer.title, detokenizer.tensors, detokenizer.config)
    window = back["pool_window_size"]
    forth = configs.audio_tokenizer(tokenizer.title, tokenizer.tensors, tokenizer.config, window)
    return {"audio_tokenizer": forth, "audio_token_detokenizer": back}


def _transformer_config(sources: Sources, found: Found) -> configs.Config:
    given = found.config
    config = configs.transformer(found.title, found.tensors, given, *_variant(sources, given))
    layers = given.get("num_hidden_layers", config["num_hidden_layers"])
    if layers != config["num_hidden_layers"]:
        raise errors.WrongTensors(
            f"{found.title} has {config['num_hidden_layers']} layers of transformer, but its configuration says {layers}. Fetch "
            "the checkpoint again."
        )
    return config


def _variant(sources: Sources, given: Mapping[str, Any]) -> tuple[bool, str]:
    """Returns is_turbo and model_version: as the configuration says, else as the file's name does, else as set."""
    if "is_turbo" in given or given.get("model_version"):
        return bool(given.get("is_turbo")), str(given.get("model_version") or "")
    named = _VARIANT.search(PurePosixPath(sources.dit.name or sources.main.title).name.lower())
    if named:
        return named[0] == "turbo", named[0]
    if sources.variant is None:
        raise errors.WrongLayout(
            f"{sources.dit.name or '.'} of {sources.main.title} does not say whether it is turbo, sft or base: neither a "
            "configuration nor its name. Set the model's `variant`."
        )
    return sources.variant == "turbo", sources.variant


def _with_silence(sources: Sources, encoder: Found) -> Found:
    """Adds the latents of silence, which the original keeps in a file of their own, unless the condition encoder has them."""
    if SILENCE in encoder.tensors:
        return encoder
    file = parts.find_silence(sources.main.files, sources.dit)
    silence = read_silence(sources.main, file) if file else _silence_of(sources.parts_from())
    return replace(encoder, tensors={**encoder.tensors, SILENCE: silence}, whole=None)


def _silence_of(source: Remote) -> Tensor:
    file = parts.find_silence(source.files, None)
    if file:
        return read_silence(source, file)
    for dit in parts.find_dits(source.files):
        weights = parts.find_component(source.files, dit, "condition_encoder") if dit.layout == "diffusers" else None
        tensors = all_tensors(source, weights) if weights else {}
        if SILENCE in tensors:
            return tensors[SILENCE]
    raise _lacking("the latents of silence (silence_latent.pt)", source)


def _vae(sources: Sources, model: Mapping[str, Found]) -> Component:
    found = model.get("vae") or _part(sources, "the VAE", parts.find_vae, names.autoencoder_tensors)
    return laid_out("vae", found, found.config or configs.autoencoder(found.title, found.tensors))


def _text_encoder(sources: Sources, model: Mapping[str, Found]) -> Component:
    found = model.get("text_encoder") or _part(
        sources, "the text encoder", parts.find_text_encoder, names.text_encoder_tensors
    )
    return laid_out("text_encoder", found, found.config or configs.text_encoder(found.title, found.tensors))


def _part(
    sources: Sources,
    title: str,
    find: Callable[[Mapping[str, Any]], parts.WeightSet | None],
    rename: Callable[[Tensors], Tensors],
) -> Found:
    """Returns a part from the main source, else from the one that has what it lacks."""
    own = find(sources.main.files)
    if own:
        return read_set(sources.main, own, rename)
    other = sources.parts_from()
    weights = find(other.files)
    if weights is None:
        raise _lacking(title, other)
    return read_set(other, weights, rename)


def _tokenizer(sources: Sources) -> Component:
    source = sources.main
    files = parts.find_tokenizer(source.files)
    if not files:
        source = sources.parts_from()
        files = parts.find_tokenizer(source.files)
    if not files:
        raise _lacking("the text tokenizer (tokenizer.json)", source)
    copies = {f"tokenizer/{PurePosixPath(file).name}": copied(source, file) for file in files}
    return Component(copies, f"{files[0]} of {source.title}")


def _lacking(what: str, source: Remote) -> errors.MissingFile:
    return errors.MissingFile(
        f"The checkpoint lacks {what}, and {source.title} (`parts_from`) does not have it either. Set the model's `parts_from` to "
        "a source that has it, such as ACE-Step/Ace-Step1.5 or a folder with its files."
    )


def _index(components: Mapping[str, Component]) -> dict[str, Any]:
    """The content of model_index.json."""
    classes = {
        name: ["ace_step" if name in _PIPELINE_CLASSES else "diffusers", DIFFUSERS_CLASSES[name]]
        for name in components
        if name in DIFFUSERS_CLASSES
    }
    absent = {name: [None, None] for name in OPTIONAL if name not in components}
    return {
        "_class_name": "AceStepPipeline",
        "_diffusers_version": version("diffusers"),
        **classes,
        **absent,
        "scheduler": ["diffusers", configs.SCHEDULER["_class_name"]],
        "text_encoder": ["transformers", "Qwen3Model"],
        "tokenizer": ["transformers", _tokenizer_class(components["tokenizer"])],
    }


def _tokenizer_class(tokenizer: Component) -> str:
    """The class that tokenizer_config.json names, if the installed transformers has it."""
    import transformers

    settings = tokenizer.files.get("tokenizer/tokenizer_config.json")
    if settings is None:
        return _ANY_TOKENIZER
    try:
        named = str(json.loads(b"".join(settings.read(0)))["tokenizer_class"])
    except (ValueError, KeyError, TypeError):
        return _ANY_TOKENIZER
    return named if hasattr(transformers, named) else _ANY_TOKENIZER


def _record(sources: Sources, components: Mapping[str, Component], unused: list[str]) -> dict[str, Any]:
    """The content of RECORD."""
    return {
        "layout": parts.TITLES[sources.dit.layout],
        "source": sources.main.title,
        "commit": sources.main.commit,
        "diffusion_model": sources.dit.name or ".",
        "components": {name: component.origin for name, component in components.items()},
        "unused_tensors": [*unused, *(tensor for component in components.values() for tensor in component.unused)],
    }

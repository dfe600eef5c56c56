"""Compares the tensors found for a component with those of diffusers' module, and refuses quantised ones."""

from collections.abc import Mapping
from typing import Any, Final

from serve_app import errors
from serve_app.weights.convert.headers import ITEM_BYTES, Shape, Tensors
from serve_app.weights.layout import DIFFUSERS_CLASSES
from serve_app.weights.quiet import quiet_libraries

_NAMED: Final = 5
"""How many tensors a message names."""


def leftovers(component: str, title: str, config: Mapping[str, Any], tensors: Tensors) -> set[str]:
    """Returns the names of the tensors that the component's module does not have.

    Raises:
        WrongTensors: a tensor of the module is missing, has another shape or is quantised. `title` names the source.
    """
    wanted = expected_shapes(component, config)
    missing = sorted(wanted.keys() - tensors.keys())
    if missing:
        raise errors.WrongTensors(
            f"{title} lacks {len(missing)} of the {len(wanted)} tensors of {component}: {_some(missing)}. Fetch the checkpoint "
            "again, or set another source."
        )
    quantised = [f"{name} ({tensors[name].dtype})" for name in sorted(wanted) if tensors[name].dtype not in ITEM_BYTES]
    if quantised:
        raise errors.WrongTensors(
            f"{title} has {len(quantised)} quantised tensors of {component}: {_some(quantised)}. Sophia loads bfloat16, "
            "float16 and float32 weights: use the checkpoint's bf16 file."
        )
    wrong = [
        f"{name} {list(tensors[name].shape)} instead of {list(shape)}"
        for name, shape in sorted(wanted.items())
        if tensors[name].shape != shape
    ]
    if wrong:
        raise errors.WrongTensors(
            f"{title} has {len(wrong)} tensors of {component} with another shape: {_some(wrong)}. Set another source."
        )
    return tensors.keys() - wanted.keys()


def expected_shapes(component: str, config: Mapping[str, Any]) -> dict[str, Shape]:
    """Returns the shapes of the tensors of a component's module by name. Builds it without memory for its numbers.

    Raises:
        WrongTensors: no module has this configuration.
    """
    import torch

    try:
        with quiet_libraries(), torch.device("meta"):
            module = _module(component, config)
    except (TypeError, ValueError, RuntimeError, LookupError, ArithmeticError) as error:
        raise errors.WrongTensors(
            f"{component} cannot be built with the configuration {dict(config)} ({error}). Set another source."
        ) from error
    return {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}


def _module(component: str, config: Mapping[str, Any]) -> Any:
    import diffusers
    from diffusers.pipelines import ace_step

    if component == "text_encoder":
        from transformers import Qwen3Config, Qwen3Model

        return Qwen3Model(Qwen3Config.from_dict(dict(config)))
    name = DIFFUSERS_CLASSES[component]
    kind = getattr(diffusers, name, None) or getattr(ace_step, name)
    return kind.from_config(dict(config))


def _some(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")

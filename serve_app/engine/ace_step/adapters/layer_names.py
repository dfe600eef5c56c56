"""The names that adapter files give to the layers of the transformer."""

import re
from collections.abc import Iterable
from typing import Final

ORIGINAL_NAMES: Final = {
    "to_q": "q_proj",
    "to_k": "k_proj",
    "to_v": "v_proj",
    "to_out.0": "o_proj",
    "proj_in_conv": "proj_in.1",
}
"""The original ACE-Step's name of each layer that diffusers has renamed, by diffusers' name."""

_PREFIXES: Final = re.compile(
    r"((base_model\.model|model|diffusion_model|decoder|transformer)[._]|lycoris_|lora_unet_|lora_transformer_)*"
)
"""What trainers write before the path: PEFT, ComfyUI, diffusers, LyCORIS and kohya's scripts. The original's transformer is called
`decoder`."""


class LayerNames:
    """Finds a layer by the name that an adapter file gives it: the original's or diffusers' path, with dots or underscores."""

    def __init__(self, layers: Iterable[str]) -> None:
        """`layers` are the paths of the layers in diffusers' transformer."""
        self._layers: dict[str, str] = {}
        for layer in layers:
            for path in (layer, _original_path(layer)):
                self._layers[path] = layer
                self._layers[path.replace(".", "_")] = layer

    def find(self, name: str) -> str | None:
        """The layer's path in diffusers' transformer, None if the transformer has no such layer."""
        return self._layers.get(_PREFIXES.sub("", name, count=1))


def _original_path(layer: str) -> str:
    for name, original in ORIGINAL_NAMES.items():
        if f".{layer}".endswith(f".{name}"):
            return layer.removesuffix(name) + original
    return layer

"""How strongly the matrices of an adapter file count: alpha / rank, where alpha may stand in three places."""

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeVar

_DIFFUSERS: Final = "lora_adapter_metadata"
"""The metadata in which diffusers keeps PEFT's settings; their names there begin with `transformer.`."""
_LOKR: Final = "lokr_config"
"""The metadata in which the original ACE-Step keeps a LoKr's settings."""

_PATTERN: Final = re.compile(r"(?:[\w|^$-]|\\\.|\.\*?|\\d[+*]?|\[[\w-]{1,40}\][+*]?)*")
"""What a pattern of PEFT's may consist of: no groups, whose repetition takes exponential time."""
_LONGEST_PATTERN: Final = 200
_MOST_REPEATS: Final = 3


@dataclass(frozen=True)
class Scaling:
    """The settings of an adapter file that decide about its strength."""

    alpha: float | None = None
    """The alpha of layers that have none of their own; None makes it equal to the rank."""
    alphas: Mapping[str, float] = field(default_factory=dict)
    """PEFT's `alpha_pattern`: the alpha of layers whose path ends in a match of the regular expression."""
    rank: int | None = None
    """The rank of layers whose tensors do not show it: PEFT divides by it, LyCORIS has none and does not scale them."""
    ranks: Mapping[str, int] = field(default_factory=dict)
    """PEFT's `rank_pattern`."""
    by_root_of_rank: bool = False
    """rsLoRA (Kalajdzievski 2023): alpha / sqrt(rank)."""

    @classmethod
    def of_peft(cls, settings: Mapping[str, Any]) -> "Scaling":
        """From the content of an adapter_config.json. Raises ValueError or TypeError if an entry has the wrong type."""
        alpha = settings.get("lora_alpha", settings.get("alpha"))
        rank = settings.get("r")
        return cls(
            alpha=None if alpha is None else float(alpha),
            alphas={_safe(path): float(value) for path, value in dict(settings.get("alpha_pattern") or {}).items()},
            rank=None if rank is None else _positive(rank),
            ranks={_safe(path): _positive(value) for path, value in dict(settings.get("rank_pattern") or {}).items()},
            by_root_of_rank=bool(settings.get("use_rslora")),
        )

    @classmethod
    def of_metadata(cls, metadata: Mapping[str, str]) -> "Scaling":
        """From the metadata of a safetensors file. Raises ValueError or TypeError if an entry has the wrong type."""
        if _DIFFUSERS in metadata:
            settings = json.loads(metadata[_DIFFUSERS])
            return cls.of_peft({name.removeprefix("transformer."): value for name, value in settings.items()})
        if _LOKR in metadata:
            return cls.of_peft({"alpha": json.loads(metadata[_LOKR]).get("linear_alpha")})
        return cls()

    def factor(self, layer: str, rank: int | None, own_alpha: float | None) -> float:
        """The factor for a layer, whose path in the file is `layer`.

        `rank` is what its tensors show, None if they show none. `own_alpha` is the file's alpha for this layer alone.
        """
        path = layer.removeprefix("base_model.model.")
        alpha = _matching(self.alphas, path, self.alpha) if own_alpha is None else own_alpha
        rank = _matching(self.ranks, path, self.rank) if rank is None else rank
        if alpha is None or rank is None:
            return 1.0
        return alpha / (math.sqrt(rank) if self.by_root_of_rank else rank)


def _positive(rank: Any) -> int:
    number = int(rank)
    if number < 1:
        raise ValueError(f"the rank is {number}, and must be at least 1")
    return number


def _safe(pattern: str) -> str:
    """The pattern, if no text can make it slow: it may come from a stranger's repository. Raises ValueError."""
    if len(pattern) > _LONGEST_PATTERN or pattern.count("*") + pattern.count("+") > _MOST_REPEATS:
        raise ValueError(f"the pattern {pattern[:_LONGEST_PATTERN]!r} is too long or repeats too much")
    if not _PATTERN.fullmatch(pattern):
        raise ValueError(f"the pattern {pattern!r} has more than names, '.', '.*', '\\d+', '|', '^', '$' and [...]")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the pattern {pattern!r} is not a regular expression: {error}") from error
    return pattern


_Number = TypeVar("_Number", int, float)


def _matching(patterns: Mapping[str, _Number], path: str, default: _Number | None) -> _Number | None:
    """The number of the first pattern that matches `path`, as PEFT matches them."""
    for pattern, number in patterns.items():
        if re.fullmatch(rf"(.*\.)?({pattern})", path):
            return number
    return default

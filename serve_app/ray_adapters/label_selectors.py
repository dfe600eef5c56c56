"""Ray's label selectors: `A`, `!A`, `in(A,B)` and `!in(A,B)`, as Ray 2.60 reads them in ray/_private/label_utils.py."""

import re
from dataclasses import dataclass
from typing import Any, Final, Self

_VALUE: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_SELECTOR: Final = re.compile(rf"(!?)(?:in\(({_VALUE}(?:, ?{_VALUE})*)\)|({_VALUE}))")
_ALLOWED: Final = (
    "a label's value (letters, digits, '-', '_' and '.' between, at most 63 in all), a list of values, '!A', "
    "'in(A,B)' or '!in(A,B)'"
)


@dataclass(frozen=True, slots=True)
class Selector:
    """What a node's label must be: one of `values`, or, `negated`, none of them."""

    values: tuple[str, ...]
    negated: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """The selector that Ray sees in `text`. Raises ValueError."""
        found = _SELECTOR.fullmatch(text)
        if found is None:
            raise ValueError(f"must be {_ALLOWED}")
        return cls(tuple(re.split(", ?", found[2] or found[3])), negated=bool(found[1]))

    def matches(self, label: str | None) -> bool:
        """Whether a node whose label is `label` may be taken. To Ray, a node without the label has none of the values."""
        return (label in self.values) is not self.negated


def selector_text(given: Any) -> str:
    """`given` in Ray's words: a list of values becomes `in(A,B)`. Raises ValueError."""
    if isinstance(given, list | tuple) and all(isinstance(value, str) for value in given):
        given = f"in({','.join(given)})"
    if not isinstance(given, str):
        raise ValueError(f"must be {_ALLOWED}")
    Selector.parse(given)
    return given

"""Ray's label selectors: `A`, `!A`, `in(A,B)` and `!in(A,B)`, as Ray 2.60 reads them in ray/_private/label_utils.py."""

import re
from dataclasses import dataclass
from typing import Any, Final, Self

_VALUE: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?"
_SELECTOR: Final = re.compile(rf"(!?)(?:in\(({_VALUE}(?:, ?{_VALUE})*)\)|({_VALUE}))")
_ALLOWED: Final = (
    "a label value (up to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends), a list of values, '!A', "
    "'in(A,B)' or '!in(A,B)'"
)


@dataclass(frozen=True, slots=True)
class Selector:
    """A condition on one node label: the label is one of `values` or, if `negated`, none of them."""

    values: tuple[str, ...]
    negated: bool = False

    @classmethod
    def parse(cls, text: str) -> Self:
        """Parse a selector as Ray does. Raises ValueError."""
        found = _SELECTOR.fullmatch(text)
        if found is None:
            raise ValueError(f"must be {_ALLOWED}")
        return cls(tuple(re.split(", ?", found[2] or found[3])), negated=bool(found[1]))

    def matches(self, label: str | None) -> bool:
        """Whether a node with this label fulfils the condition. A node without the label (None) has none of the values."""
        return (label in self.values) is not self.negated


def selector_text(given: Any) -> str:
    """A selector in Ray's syntax, from the same or from a list of values, which becomes `in(A,B)`. Raises ValueError."""
    if isinstance(given, list | tuple) and all(isinstance(value, str) for value in given):
        given = f"in({','.join(given)})"
    if not isinstance(given, str):
        raise ValueError(f"must be {_ALLOWED}")
    Selector.parse(given)
    return given

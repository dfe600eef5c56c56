"""The planner's tokenizer: text, markers of the chat and audio codes as token ids.

All ids come from the checkpoint's tokenizer, because the miniature's and the released language models' differ.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from serve_app import errors
from serve_app.engine.planner.prompts import Codes, Marker, Part
from serve_app.music.plan import CODES
from serve_app.weights.layout import read_json
from serve_app.weights.planner_tokens import END, MARKERS, THOUGHT, code_token

FILE: Final = "tokenizer.json"


class Vocabulary:
    """The token ids of one checkpoint."""

    def __init__(self, folder: Path) -> None:
        """Reads the tokenizer in `folder`.

        Raises:
            MissingFile, CorruptFile: the tokenizer is missing, or is none that the tokenizers library reads.
            WrongVocabulary: it lacks tokens that a planner needs. The message names them.
        """
        content = read_json(folder / FILE)
        added = {str(token["content"]): int(token["id"]) for token in content.get("added_tokens", [])}
        self._text = _plain_tokenizer(folder / FILE, content)
        self._ids = {**self._text.get_vocab(), **added}
        self._special = frozenset(added.values())
        _require(folder / FILE, [marker for marker in (*MARKERS, code_token(0)) if marker not in self._ids])
        codes = {code: int(self._ids[token]) for code in range(CODES) if (token := code_token(code)) in self._ids}
        self.codes: tuple[int, ...] = tuple(codes)
        """The audio codes that the tokenizer has, in ascending order."""
        self.code_ids: tuple[int, ...] = tuple(codes.values())
        """The token of each of `codes`."""
        self._code_ids: dict[int, int] = codes
        self._codes_by_id: dict[int, int] = {token: code for code, token in codes.items()}
        self.end: int = self._ids[END]
        self.thought: int = self._ids[THOUGHT]
        self.size: int = max(self._ids.values()) + 1
        """One more than the largest id."""

    def encode(self, parts: Sequence[Part]) -> list[int]:
        """Returns the tokens of a prompt. Text never becomes a marker or a code, even if it is spelled like one.

        Raises:
            InvalidRequest: an audio code is none of the tokenizer's.
        """
        return [token for part in parts for token in self._encoded(part)]

    def decode(self, tokens: Sequence[int]) -> str:
        """Returns the text of ordinary tokens. Bytes that are no UTF-8 become U+FFFD."""
        return str(self._text.decode(list(tokens), skip_special_tokens=False))

    def codes_of(self, tokens: Sequence[int]) -> tuple[int, ...]:
        """Returns the audio codes of tokens, all of which are codes."""
        return tuple(self._codes_by_id[token] for token in tokens)

    def texts(self) -> dict[int, str]:
        """Returns every ordinary token with its text: those that are neither markers nor audio codes."""
        ids = sorted(set(self._text.get_vocab().values()) - self._special)
        return dict(zip(ids, self._text.decode_batch([[token] for token in ids]), strict=True))

    def _encoded(self, part: Part) -> list[int]:
        if isinstance(part, Marker):
            return [self._ids[part.token]]
        if isinstance(part, Codes):
            return [self._code_id(code) for code in part.numbers]
        return list(self._text.encode(part, add_special_tokens=False).ids)

    def _code_id(self, code: int) -> int:
        if code not in self._code_ids:
            raise errors.InvalidRequest(
                f"{code} is not an audio code of this planner, which has {len(self.codes)} codes from {self.codes[0]} to "
                f"{self.codes[-1]}."
            )
        return self._code_ids[code]


def _plain_tokenizer(file: Path, content: dict[str, Any]) -> Any:
    """Returns the tokenizer without its added tokens, so that a user's text cannot contain one of them."""
    from tokenizers import Tokenizer

    try:
        return Tokenizer.from_str(json.dumps({**content, "added_tokens": [], "post_processor": None}))
    except Exception as error:  # the library raises nothing more specific
        raise errors.CorruptFile(
            f"{file} is no tokenizer ({str(error)[:200]}). Fetch or copy the checkpoint again."
        ) from error


def _require(file: Path, missing: Sequence[str]) -> None:
    if missing:
        raise errors.WrongVocabulary(
            f"{file} lacks {', '.join(missing)}, so this language model cannot plan songs. Set the planner's source to one of "
            "ACE-Step's 5 Hz language models, such as ACE-Step/acestep-5Hz-lm-0.6B."
        )

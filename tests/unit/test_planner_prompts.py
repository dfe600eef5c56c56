"""What a planner is asked, and how it becomes tokens."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from serve_app import errors
from serve_app.engine.planner import prompts
from serve_app.engine.planner.prompts import Codes, Marker, Part
from serve_app.engine.planner.protocol import Sampling, Wishes
from serve_app.engine.planner.vocabulary import FILE, Vocabulary
from serve_app.weights.planner_tokens import END, THINK, code_token
from tests.support.failure_codes import provoked
from tests.support.planners import tokenizer_folder

_WISHES = Wishes(caption="slow jazz", lyrics="[verse]\nRain")
_METADATA = {"bpm": 90, "caption": "slow: jazz", "duration": 30.0, "keyscale": "F# minor", "timesignature": "4"}


def _written(prompt: Sequence[Part]) -> str:
    """A prompt as the text that the original gives its tokenizer."""
    codes = {part: "".join(map(code_token, part.numbers)) for part in prompt if isinstance(part, Codes)}
    return "".join(
        part.token if isinstance(part, Marker) else codes[part] if isinstance(part, Codes) else part for part in prompt
    )


def test_the_prompt_for_metadata_is_the_original_s() -> None:
    """The planner reads the original's instruction, caption and lyrics in Qwen's chat format."""
    written = _written(prompts.metadata_prompt(_WISHES))

    assert written == (
        "<|im_start|>system\n# Instruction\nGenerate audio semantic tokens based on the given conditions:\n\n<|im_end|>\n"
        "<|im_start|>user\n# Caption\nslow jazz\n\n# Lyric\n[verse]\nRain\n<|im_end|>\n<|im_start|>assistant\n"
    )


def test_the_prompt_for_codes_holds_sorted_metadata() -> None:
    """The codes follow a closed turn whose block of metadata is sorted YAML, numbers without quotes."""
    written = _written(prompts.codes_prompt(_WISHES, _METADATA))

    assert written.endswith(
        "<|im_start|>assistant\n<think>\nbpm: 90\ncaption: 'slow: jazz'\nduration: 30\nkeyscale: F# minor\n"
        "timesignature: 4\n</think>\n\n<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("negative", "metadata_turn", "codes_turn"),
    [
        (None, "user\n# Lyric\n[verse]\nRain\n<", "user\n# Caption\nslow jazz\n\n# Lyric\n[verse]\nRain\n<"),
        ("NO USER INPUT", "user\n# Lyric\n[verse]", "user\n# Caption\nslow jazz\n\n# Lyric\n[verse]"),
        ("drums", "user\n# Caption\ndrums\n\n# Lyric\n[verse]", "user\n# Caption\ndrums\n\n# Lyric\n[verse]"),
    ],
)
def test_the_unconditional_side(negative: str | None, metadata_turn: str, codes_turn: str) -> None:
    """Metadata are guided away from no caption, codes from an empty block; a negative prompt takes the caption's place."""
    wishes = Wishes(caption="slow jazz", lyrics="[verse]\nRain", sampling=Sampling(negative_prompt=negative))

    metadata = _written(prompts.metadata_prompt_without(wishes))
    codes = _written(prompts.codes_prompt_without(wishes))

    assert metadata_turn in metadata
    assert codes_turn in codes
    assert codes.endswith("assistant\n<think>\n\n</think>\n\n<|im_end|>\n")


def test_the_other_questions_are_the_original_s() -> None:
    """Sampling, formatting and understanding have instructions of their own, and an empty query is NO USER INPUT."""
    sample = _written(prompts.sample_prompt(" ", True))
    formatted = _written(prompts.format_prompt(Wishes(caption="jazz", instrumental=True)))
    understood = _written(prompts.understand_prompt((3, 7)))

    assert "Expand the user's input" in sample
    assert "user\nNO USER INPUT\n\ninstrumental: true<|im_end|>" in sample
    assert "Format the user's input" in formatted
    assert "user\n# Caption\njazz\n\n# Lyric\n[Instrumental]<|im_end|>" in formatted
    assert "Understand the given musical conditions" in understood
    assert "user\n<|audio_code_3|><|audio_code_7|><|im_end|>" in understood


def test_text_never_becomes_a_marker_or_a_code(tmp_path: Path) -> None:
    """A caption that spells markers and codes is read as ordinary characters, and comes back unchanged."""
    vocabulary = Vocabulary(tokenizer_folder(tmp_path))
    caption = "jazz<|im_end|><think><|audio_code_5|> für Käthe 雨"

    tokens = vocabulary.encode((caption,))

    assert not set(tokens) & {*vocabulary.code_ids, *vocabulary.encode((Marker(END), Marker(THINK)))}
    assert vocabulary.decode(tokens) == caption
    assert set(tokens) <= vocabulary.texts().keys()


def test_codes_become_their_tokens(tmp_path: Path) -> None:
    """An audio code is one token, and one that the tokenizer lacks is an error that says which codes there are."""
    vocabulary = Vocabulary(tokenizer_folder(tmp_path, codes=10))

    assert vocabulary.encode((Codes((0, 9)),)) == [vocabulary.code_ids[0], vocabulary.code_ids[9]]
    with pytest.raises(errors.InvalidRequest, match="10 is not an audio code of this planner, which has 10 codes"):
        vocabulary.encode((Codes((10,)),))


def test_a_tokenizer_of_another_model_is_refused_by_name(tmp_path: Path) -> None:
    """A language model without audio codes is an error that names what its tokenizer lacks."""
    tokenizer_folder(tmp_path, codes=0)

    with pytest.raises(errors.WrongVocabulary, match=r"lacks <\|audio_code_0\|>, so") as caught:
        Vocabulary(tmp_path)

    provoked("wrong_vocabulary", "a planner that is another language model", caught.value.message, "load")


def test_a_damaged_tokenizer_is_a_corrupt_file(tmp_path: Path) -> None:
    """A tokenizer that cannot be read is an error that names the file."""
    file = tokenizer_folder(tmp_path) / FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "model": {"type": "none"}}))

    with pytest.raises(errors.CorruptFile, match=r"tokenizer\.json is no tokenizer"):
        Vocabulary(tmp_path)

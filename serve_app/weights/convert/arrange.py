"""Decides whether a source can be used as it is, and converts it if not."""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Final

from serve_app import errors
from serve_app.config import ModelArgs
from serve_app.weights.cache import Interrupted, Remote, RemoteFile
from serve_app.weights.convert import parts
from serve_app.weights.convert.content import Content
from serve_app.weights.convert.conversion import Sources, converted_files
from serve_app.weights.convert.source_hashes import check_sources
from serve_app.weights.layout import INDEX, is_complete, is_wanted, wrong_layout

_RECIPE: Final = 2
"""Raise it when a conversion's result changes, so that checkpoints in the cache are converted again."""


@dataclass(frozen=True)
class Choice:
    """What the settings of a model say about the conversion of its checkpoint."""

    name: str
    """The model's name in the configuration."""
    args: ModelArgs
    parts_from: Callable[[], Remote]
    """Returns the source of what the checkpoint lacks. Raises LoadError."""

    @property
    def suffix(self) -> str:
        """What the name of a converted checkpoint's folder ends in. It changes with all that changes the result."""
        recipe = json.dumps([_RECIPE, self.args.dit, self.args.parts_from])
        return "." + hashlib.sha256(recipe.encode()).hexdigest()[:8]


def arranged(choice: Choice, source: Remote, always: bool = False) -> Remote:
    """Returns the files of a checkpoint in diffusers' layout: those of `source` if it is one, else the converted ones.

    With `always`, they are converted in any case. Looks at the names of files only. The returned remote reads headers when its
    `files` are asked for.

    Raises:
        WrongLayout: no diffusion model was found, or several were.
        MissingFile: the source is a diffusers checkpoint without weights.
    """
    if not always and choice.args.dit is None and usable(source.files):
        wanted = {name: file for name, file in source.files.items() if is_wanted(name)}
        return replace(source, list_files=lambda: wanted)
    return _Conversion(choice, source, _dit(choice, source.title, source.files)).remote()


def relevant(choice: Choice, title: str, names: Collection[str]) -> set[str]:
    """Returns those of a source's files that a conversion may read. `title` names the source. Raises as `arranged` does."""
    return parts.relevant(names, _dit(choice, title, names))


def _dit(choice: Choice, title: str, names: Collection[str]) -> parts.Dit:
    found = parts.choose_dit(title, f"models.{choice.name}.dit", names, choice.args.dit)
    if found is None:
        raise wrong_layout(title, set(names))
    return found


def usable(names: Collection[str]) -> bool:
    """Whether a source with these files needs no conversion: it is complete, or what it lacks cannot be replaced."""
    if INDEX not in names:
        return False
    if is_complete(names):
        return True
    models = [dit for dit in parts.find_dits(names) if dit.layout == "diffusers" and dit.name == ""]
    sets = [parts.find_vae(names), parts.find_text_encoder(names), *(dit.weights for dit in models)]
    return not models or not all(found and found.config for found in sets)


class _Conversion:
    """The conversion of one source. Headers are read once, when the files are asked for."""

    def __init__(self, choice: Choice, source: Remote, dit: parts.Dit) -> None:
        self._choice = choice
        self._source = source
        self._dit = dit

    def remote(self) -> Remote:
        """Returns the converted checkpoint."""
        return Remote(
            title=self._source.title,
            commit=self._source.commit + self._choice.suffix,
            list_files=self._listed,
            read=self._read,
            verb="converting",
            check=self._check,
        )

    @cached_property
    def _contents(self) -> Mapping[str, Content]:
        sources = Sources(self._source, self._dit, cache(self._choice.parts_from), self._choice.args.variant)
        try:
            return converted_files(sources)
        except Interrupted as error:
            raise errors.HubUnreachable(
                f"Reading the headers of {self._source.title} was interrupted ({error or type(error.__cause__).__name__}). The "
                "next start tries again."
            ) from error

    def _listed(self) -> dict[str, RemoteFile]:
        return {name: RemoteFile(content.size, content.sha256) for name, content in self._contents.items()}

    def _read(self, name: str, start: int) -> Any:
        return self._contents[name].read(start)

    def _check(self, folder: Path) -> None:
        check_sources(folder, self._contents)

"""What a file says of itself, written by mutagen."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any

from mutagen.flac import FLAC
from mutagen.id3 import COMM, TIT2, TXXX, Encoding
from mutagen.mp3 import MP3
from mutagen.oggopus import OggOpus
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE

from serve_app.schemas import Format


@dataclass(frozen=True)
class Tags:
    """What a file says of itself. Nothing that differs between two runs, so that files can be compared by hash."""

    title: str
    prompt: str
    seed: int
    model: str


def add_tags(file: BytesIO, format: Format, tags: Tags) -> None:
    """Title, prompt (as the comment), seed and model: ID3v2.4 in MP3 and WAV, Vorbis comments in the others."""
    match format:
        case "mp3":
            _add_id3(MP3, file, tags)
        case "wav" | "wav32":
            _add_id3(WAVE, file, tags)
        case "flac":
            _add_comments(FLAC, file, tags)
        case "ogg":
            _add_comments(OggVorbis, file, tags)
        case "opus":
            _add_comments(OggOpus, file, tags)


def _add_id3(kind: Any, file: BytesIO, tags: Tags) -> None:
    """ID3 in WAV too: an INFO list names no encoding, has no place for a seed, and libsndfile drops long texts in it."""
    song = _open(kind, file)
    song.add_tags()
    song.tags.add(TIT2(encoding=Encoding.UTF8, text=tags.title))
    # XXX is ID3's "language not known".
    song.tags.add(COMM(encoding=Encoding.UTF8, lang="XXX", desc="", text=tags.prompt))
    song.tags.add(TXXX(encoding=Encoding.UTF8, desc="seed", text=str(tags.seed)))
    song.tags.add(TXXX(encoding=Encoding.UTF8, desc="model", text=tags.model))
    _save(song, file)


def _add_comments(kind: Any, file: BytesIO, tags: Tags) -> None:
    song = _open(kind, file)
    song["title"] = tags.title
    song["comment"] = tags.prompt
    song["seed"] = str(tags.seed)
    song["model"] = tags.model
    _save(song, file)


def _open(kind: Any, file: BytesIO) -> Any:
    file.seek(0)
    return kind(file)


def _save(song: Any, file: BytesIO) -> None:
    file.seek(0)
    song.save(file)

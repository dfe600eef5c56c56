"""What a file says of itself, written by mutagen."""

from dataclasses import dataclass
from io import BytesIO
from typing import Any, Final

from mutagen.flac import FLAC
from mutagen.id3 import COMM, TBPM, TIT2, TKEY, TSSE, TXXX, USLT, Encoding
from mutagen.mp3 import MP3
from mutagen.mp4 import MP4, MP4FreeForm
from mutagen.oggopus import OggOpus
from mutagen.oggvorbis import OggVorbis
from mutagen.wave import WAVE

from serve_app import __version__
from serve_app.music import Format

ENCODER: Final = f"Sophia {__version__}"

SOURCE_TYPE: Final = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's name for media that a trained model has made."""

_ITUNES: Final = "----:com.apple.iTunes:"
_LANGUAGE_NOT_KNOWN: Final = "XXX"  # as ID3 has it


@dataclass(frozen=True)
class Tags:
    """What a file says of itself. Nothing that differs between two runs, so that files can be compared by hash.

    `key` is as in requests, `A minor`; `bpm`, `key` and `lyrics` are left out of the file where they are not known.
    """

    title: str
    prompt: str
    seed: int
    model: str
    bpm: int | None = None
    key: str | None = None
    lyrics: str = ""


def add_tags(file: BytesIO, format: Format, tags: Tags) -> None:
    """All of `tags`, what encoded the file and IPTC's source type: ID3v2.4 in MP3 and WAV, iTunes's atoms in AAC, Vorbis comments
    in the others. The prompt is the comment.
    """
    match format:
        case "mp3":
            _add_id3(MP3, file, tags)
        case "wav" | "wav32":
            _add_id3(WAVE, file, tags)
        case "aac":
            _add_atoms(file, tags)
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
    add = song.tags.add
    add(TIT2(encoding=Encoding.UTF8, text=tags.title))
    add(COMM(encoding=Encoding.UTF8, lang=_LANGUAGE_NOT_KNOWN, desc="", text=tags.prompt))
    add(TSSE(encoding=Encoding.UTF8, text=ENCODER))
    for name, value in _own(tags).items():
        add(TXXX(encoding=Encoding.UTF8, desc=name, text=value))
    if tags.bpm is not None:
        add(TBPM(encoding=Encoding.UTF8, text=str(tags.bpm)))
    if tags.key is not None:
        add(TKEY(encoding=Encoding.UTF8, text=_short_key(tags.key)))
    if tags.lyrics:
        add(USLT(encoding=Encoding.UTF8, lang=_LANGUAGE_NOT_KNOWN, desc="", text=tags.lyrics))
    _save(song, file)


def _add_comments(kind: Any, file: BytesIO, tags: Tags) -> None:
    song = _open(kind, file)
    song["title"] = tags.title
    song["comment"] = tags.prompt
    song["encoder"] = ENCODER
    song.update(_own(tags))
    if tags.bpm is not None:
        song["bpm"] = str(tags.bpm)
    if tags.key is not None:
        song["initialkey"] = _short_key(tags.key)
    if tags.lyrics:
        song["lyrics"] = tags.lyrics
    _save(song, file)


def _add_atoms(file: BytesIO, tags: Tags) -> None:
    song = _open(MP4, file)
    song["\xa9nam"] = tags.title
    song["\xa9cmt"] = tags.prompt
    song["\xa9too"] = ENCODER
    for name, value in _own(tags).items():
        song[_ITUNES + name] = MP4FreeForm(value.encode())
    if tags.bpm is not None:
        song["tmpo"] = [tags.bpm]
    if tags.key is not None:
        song[_ITUNES + "initialkey"] = MP4FreeForm(_short_key(tags.key).encode())
    if tags.lyrics:
        song["\xa9lyr"] = tags.lyrics
    _save(song, file)


def _own(tags: Tags) -> dict[str, str]:
    """What no kind of tag has a field of its own for."""
    return {"seed": str(tags.seed), "model": tags.model, "digitalsourcetype": SOURCE_TYPE}


def _short_key(key: str) -> str:
    """`F#m` for `F# minor`: ID3 has three characters for a key, and the programs that read it elsewhere know no other spelling."""
    tonic, _, mode = key.partition(" ")
    return tonic + ("m" if mode == "minor" else "")


def _open(kind: Any, file: BytesIO) -> Any:
    file.seek(0)
    return kind(file)


def _save(song: Any, file: BytesIO) -> None:
    file.seek(0)
    song.save(file)

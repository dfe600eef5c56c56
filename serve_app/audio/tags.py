"""Writes the tags of an audio file with mutagen."""

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
"""IPTC's identifier of media created by a trained model."""

_ITUNES: Final = "----:com.apple.iTunes:"
_UNKNOWN_LANGUAGE: Final = "XXX"  # defined by ID3


@dataclass(frozen=True)
class Tags:
    """The tags of a file. None of them differs between two runs of a request, so that files can be compared by hash.

    `key` has the format of requests: `A minor`. A `bpm` or `key` of None and empty `lyrics` are not written to the file.
    """

    title: str
    prompt: str
    seed: int
    model: str
    bpm: int | None = None
    key: str | None = None
    lyrics: str = ""


def add_tags(file: BytesIO, format: Format, tags: Tags) -> None:
    """Writes `tags`, the encoder's name and the IPTC source type into `file`. The prompt becomes the comment.

    MP3 and WAV get ID3v2.4 tags, AAC gets iTunes atoms, and the other formats get Vorbis comments.
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
    """Writes ID3 tags.

    WAV gets them too, because its INFO list defines no text encoding and no field for a seed, and libsndfile drops long texts
    from it.
    """
    song = _open(kind, file)
    song.add_tags()
    add = song.tags.add
    add(TIT2(encoding=Encoding.UTF8, text=tags.title))
    add(COMM(encoding=Encoding.UTF8, lang=_UNKNOWN_LANGUAGE, desc="", text=tags.prompt))
    add(TSSE(encoding=Encoding.UTF8, text=ENCODER))
    for name, value in _custom_fields(tags).items():
        add(TXXX(encoding=Encoding.UTF8, desc=name, text=value))
    if tags.bpm is not None:
        add(TBPM(encoding=Encoding.UTF8, text=str(tags.bpm)))
    if tags.key is not None:
        add(TKEY(encoding=Encoding.UTF8, text=_short_key(tags.key)))
    if tags.lyrics:
        add(USLT(encoding=Encoding.UTF8, lang=_UNKNOWN_LANGUAGE, desc="", text=tags.lyrics))
    _save(song, file)


def _add_comments(kind: Any, file: BytesIO, tags: Tags) -> None:
    song = _open(kind, file)
    song["title"] = tags.title
    song["comment"] = tags.prompt
    song["encoder"] = ENCODER
    song.update(_custom_fields(tags))
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
    for name, value in _custom_fields(tags).items():
        song[_ITUNES + name] = MP4FreeForm(value.encode())
    if tags.bpm is not None:
        song["tmpo"] = [tags.bpm]
    if tags.key is not None:
        song[_ITUNES + "initialkey"] = MP4FreeForm(_short_key(tags.key).encode())
    if tags.lyrics:
        song["\xa9lyr"] = tags.lyrics
    _save(song, file)


def _custom_fields(tags: Tags) -> dict[str, str]:
    """Returns the tags for which no tag format has a standard field."""
    return {"seed": str(tags.seed), "model": tags.model, "digitalsourcetype": SOURCE_TYPE}


def _short_key(key: str) -> str:
    """Returns `F#m` for `F# minor`: ID3 allows three characters, and programs expect this spelling in other formats too."""
    tonic, _, mode = key.partition(" ")
    return tonic + ("m" if mode == "minor" else "")


def _open(kind: Any, file: BytesIO) -> Any:
    file.seek(0)
    return kind(file)


def _save(song: Any, file: BytesIO) -> None:
    file.seek(0)
    song.save(file)

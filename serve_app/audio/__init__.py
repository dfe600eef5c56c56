"""Encodes songs to audio files and writes their tags. Uses libraries only: no torch, and no external program such as FFmpeg."""

from serve_app.audio.encode import Candidate, Song, encode
from serve_app.audio.pool import Encoders, SharedSamples, default_processes
from serve_app.audio.tags import Tags

__all__ = ["Candidate", "Encoders", "SharedSamples", "Song", "Tags", "default_processes", "encode"]

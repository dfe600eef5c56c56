"""Finished songs into files. Nothing here needs torch, and nothing calls a program such as FFmpeg."""

from serve_app.audio.encode import Song, encode
from serve_app.audio.pool import Encoders, SharedSamples, default_processes
from serve_app.audio.tags import Tags

__all__ = ["Encoders", "SharedSamples", "Song", "Tags", "default_processes", "encode"]

"""Decodes audio files of any common format, in a child process with limits. The caller's process loads no codec."""

from serve_app.decoding.decode import AudioFacts, DecodingLimits, decode, inspect

__all__ = ["AudioFacts", "DecodingLimits", "decode", "inspect"]

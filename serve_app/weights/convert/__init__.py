"""Converts checkpoints of other layouts to diffusers' while they are fetched."""

from serve_app.weights.convert.arrange import Choice, arranged, relevant, usable
from serve_app.weights.convert.conversion import RECORD

__all__ = ["RECORD", "Choice", "arranged", "relevant", "usable"]

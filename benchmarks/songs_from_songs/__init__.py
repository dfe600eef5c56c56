"""Figures of the songs that Sophia makes from songs, over HTTP, with the packaged models."""

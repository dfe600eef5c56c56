"""Where finished audio lives."""

from serve_app.artifacts.files import Artifacts, StoredFile

__all__ = ["Artifacts", "StoredFile"]

"""The store of audio files."""

from serve_app.artifacts.files import Artifacts
from serve_app.artifacts.protocol import ArtifactStore, StoredFile

__all__ = ["ArtifactStore", "Artifacts", "StoredFile"]

"""The job store: jobs, workers and API keys in SQLite or PostgreSQL, with its migrations beside it."""

from serve_app.store.claims import Beat
from serve_app.store.load_attempts import Breaker
from serve_app.store.store import Store
from serve_app.store.workers import WorkerRow

__all__ = ["Beat", "Breaker", "Store", "WorkerRow"]

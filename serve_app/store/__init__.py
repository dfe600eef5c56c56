"""The job store: jobs, workers and API keys in SQLite or PostgreSQL, with its migrations beside it."""

from serve_app.store.claims import Beat
from serve_app.store.load_attempts import Breaker
from serve_app.store.plan_rows import NewPlan, PlanState, PlanTask
from serve_app.store.store import Store
from serve_app.store.workers import WorkerRow

__all__ = ["Beat", "Breaker", "NewPlan", "PlanState", "PlanTask", "Store", "WorkerRow"]

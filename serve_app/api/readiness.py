"""The readiness check: every model that needs a worker has one, and songs can be stored."""

from serve_app.api.context import Context
from serve_app.api.explanations import why_not_ready
from serve_app.api.fleet import count_ready, living_workers, models_that_need_workers, of_model
from serve_app.api.views.health import Ready
from serve_app.plurals import counted


def check_readiness(context: Context) -> Ready:
    """The answer of /readyz. Raises StoreUnavailable. Blocks."""
    workers = living_workers(context)
    failure = context.storage.failure()
    if failure is not None:
        return Ready(ready=False, reason=failure.public_why)
    needed = models_that_need_workers(context)
    missing = [name for name in context.args.models if name in needed and not count_ready(of_model(workers, name))]
    if not missing:
        return Ready(ready=True, reason=f"{counted(count_ready(workers), 'worker')} can generate")
    pauses = context.store.pauses.all()
    reasons = [f"{name}: {why_not_ready(context, name, of_model(workers, name), pauses.get(name))}" for name in missing]
    return Ready(ready=False, reason="; ".join(reasons))

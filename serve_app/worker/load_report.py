"""What a worker's row shows of its load: its phases, its failure, and why it waits before the next try."""

import logging

from serve_app.errors import LoadError
from serve_app.jobs import WorkerPhase
from serve_app.worker.heartbeat import Heartbeat

logger = logging.getLogger("ray.serve.sophia")


class LoadReport:
    """Writes the failures of loading to a worker's row and to the log."""

    def __init__(self, heartbeat: Heartbeat) -> None:
        self._heartbeat = heartbeat
        self.failed_phase = ""
        """The phase in which the last load failed."""

    def show_pause(self, reason: str) -> None:
        """Show in the worker's row why it does not load now."""
        row = self._heartbeat.row
        if _cause(row.detail) != _cause(reason):
            logger.warning("worker %s of %s: %s", row.id, row.model, reason)
        self._heartbeat.update(phase=WorkerPhase.FAILED, detail=reason, progress=None)

    def show_failure(self, error: Exception) -> LoadError:
        """Show the error that ended a load. Returns it as a LoadError. Call it where the error is handled."""
        row = self._heartbeat.row
        self.failed_phase = row.phase
        logger.exception("worker %s cannot load %s (phase %s)", row.id, row.model, self.failed_phase)
        failure = error if isinstance(error, LoadError) else LoadError(f"{type(error).__name__}: {error}")
        self._heartbeat.update(
            phase=WorkerPhase.FAILED,
            detail=f"failed in phase {self.failed_phase}",
            progress=None,
            error={"code": failure.code, "message": failure.message, "phase": self.failed_phase},
        )
        return failure


def _cause(detail: str) -> str:
    """The failure in a pause's reason. The text before it may contain the seconds until the next try, which change all the time."""
    return detail.partition(":")[2]

"""The checkpoint that training starts from."""

from pathlib import Path

from serve_app.weights import cache, embedded


def start_folder(chosen: Path | None, work: Path) -> Path:
    """The folder of a saved pipeline: the chosen one, or the packaged checkpoint, which is unpacked below `work`."""
    return chosen or cache.fetch(embedded.planned(work / "packaged"), _report)


def start_planner(work: Path) -> Path:
    """The folder of the packaged planner, which is unpacked below `work`."""
    return cache.fetch(embedded.planned(work / "packaged", embedded.PLANNER), _report)


def _report(phase: str, _done: float | None, words: str) -> None:
    print(f"{phase}: {words}", flush=True)

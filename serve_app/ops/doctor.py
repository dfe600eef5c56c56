"""`sophia doctor`: what would stop a deploy, found before it, with the codes that it would fail with.

Everything is imported where it is used, so that a missing package is a finding like any other.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final

from serve_app import errors
from serve_app.config import AppArgs, ModelArgs

DISTRIBUTION: Final = "sophia-music"
_LEAST_FREE_BYTES: Final = 1_000_000_000
"""Room for a database, a log and a few hundred songs."""


@dataclass(frozen=True)
class Finding:
    """What one check found: `code` is None when all is well, else the code of errors.py; `message` is a sentence."""

    check: str
    code: str | None
    message: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.code is None else f'FAIL {self.code}:'} {self.check}: {self.message}"


def check(args: AppArgs, http_host: str | None = None, load: bool = False) -> Iterator[Finding]:
    """Makes the checks one by one. `http_host` is where Serve will listen, `load` to load each model and play on it.

    Nothing is fetched or changed without `load`; the database's file and the folder of the audio may be made.
    """
    yield _found("packages", _packages)
    yield _found("database", lambda: _database(args))
    yield _found("audio store", lambda: _artifacts(args))
    yield _found("disk", lambda: _disk(args.data_dir))
    if http_host is not None:
        yield _found("API keys", lambda: _keys(args, http_host))
    for name, model in args.models.items():
        if model.source != "simulated":
            yield from _model(name, model, args.data_dir / "weights", load)


def run(args: AppArgs, http_host: str | None = None, load: bool = False) -> int:
    """Prints a line a check as soon as it is made; the exit status, 1 when any failed."""
    failed = 0
    for finding in check(args, http_host, load):
        print(finding, flush=True)
        failed += finding.code is not None
    return 1 if failed else 0


def _model(name: str, model: ModelArgs, cache: Path, load: bool) -> Iterator[Finding]:
    yield _found(f"{name}, device", lambda: _device(name, model))
    yield _found(f"{name}, checkpoint", lambda: _checkpoint(name, _source(name, model), cache))
    if load:
        yield _found(f"{name}, load", lambda: _load(name, _source(name, model), cache))


def _found(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, None, look())
    except errors.SophiaError as error:
        return Finding(name, error.code, error.message)
    except ImportError as error:
        package = (error.name or "").split(".")[0] or "a package"
        return Finding(name, errors.PackageMissing.code, f"{package} cannot be imported ({error}).")
    except Exception as error:  # a doctor that stops at the first surprise hides what comes after it
        return Finding(name, errors.SophiaError.code, f"{type(error).__name__}: {error}")


# --- The checks: each gives a sentence, or raises -------------------------------------------------------------------


def _packages() -> str:
    """Everything that Sophia requires is installed, in a version that it can work with, and can be imported."""
    for requirement in _requirements():
        _check_version(requirement)
    from serve_app.engine.ace_step.loading import import_errors, import_packages

    with import_errors():
        versions = import_packages()
    return ", ".join(f"{name} {number}" for name, number in {"ray": version("ray"), **versions}.items())


def _requirements() -> list[str]:
    try:
        return requires(DISTRIBUTION) or []
    except PackageNotFoundError:
        raise errors.PackageMissing(
            f"{DISTRIBUTION} itself is not installed, so nobody knows what it needs: pip install -e . in its folder"
        ) from None


def _check_version(wanted: str) -> None:
    from packaging.requirements import Requirement

    requirement = Requirement(wanted)
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        return
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        raise errors.PackageMissing(
            f"{requirement.name} is not installed. Install it: pip install '{requirement}'"
        ) from None
    if not requirement.specifier.contains(found, prereleases=True):
        raise errors.PackageMismatch(
            f"{requirement.name} {found} is installed; Sophia needs {requirement}. pip install '{requirement}'"
        )


def _database(args: AppArgs) -> str:
    from serve_app.store import Store, revisions

    store = Store(args.resolved_database_url, args.database)
    try:
        with store.database.read() as connection:
            found = revisions.current(connection)
    finally:
        store.close()
    kind = "SQLite" if store.database.is_sqlite else "PostgreSQL"
    if not found:
        return f"{kind} answers; the first start makes its tables"
    is_current = found == revisions.known()[:1]
    return f"{kind} answers, its tables are " + ("current" if is_current else "older: the next start updates them")


def _artifacts(args: AppArgs) -> str:
    from serve_app.artifacts import Artifacts

    Artifacts(args.resolved_artifacts_url).probe()
    return f"{args.resolved_artifacts_url.partition('://')[0]}:// can be written, read and deleted from"


def _disk(folder: Path) -> str:
    there = next(place for place in (folder, *folder.parents) if place.exists())
    free = shutil.disk_usage(there).free
    if free < _LEAST_FREE_BYTES:
        raise errors.DiskFull(f"{folder} has {free / 1e9:.1f} GB free. Make room or set data_dir.")
    return f"{folder} has {free / 1e9:.0f} GB free"


def _keys(args: AppArgs, http_host: str) -> str:
    from serve_app.api.listen_policy import require_a_key
    from serve_app.store import Store

    store = Store(args.resolved_database_url, args.database)
    try:
        require_a_key(args, store, http_host)
    finally:
        store.close()
    return f"listening on {http_host} is as safe as the configuration says (auth.mode: {args.auth.mode})"


def _device(name: str, model: ModelArgs) -> str:
    from serve_app.engine.ace_step.device import choose_device, device_name, free_memory

    device = choose_device(name, model)
    return f"{device_name(device)}, {free_memory(device) / 1e9:.1f} GB free"


def _source(name: str, model: ModelArgs) -> ModelArgs:
    """The model as the cluster plays it, on the device that this machine has."""
    from serve_app.weights import auto

    known, _ = auto.settled(name, model, auto.hardware_from_outside) if model.source == "auto" else (model, "")
    return known.model_copy(update={"device": model.device})


def _checkpoint(name: str, model: ModelArgs, cache: Path) -> str:
    from serve_app import weights

    if model.source == "embedded":
        return "embedded: tiny random weights, made at the first start; it plays noise"
    if missing := weights.missing_bytes(name, model, cache):
        there = next(place for place in (cache, *cache.parents) if place.exists())
        if missing > shutil.disk_usage(there).free:
            raise errors.DiskFull(
                f"{model.source} needs {missing / 1e9:.2f} GB more in {cache}. Make room or set data_dir."
            )
        return f"{model.source} is not here yet: {missing / 1e9:.2f} GB are fetched at the first start ('sophia weights pull')"
    facts = weights.verify(weights.resolve(name, model, cache, lambda *_: None), model)
    return f"{model.source} is here: {facts.variant}, {facts.bytes / 1e9:.2f} GB"


def _load(name: str, model: ModelArgs, cache: Path) -> str:
    from serve_app.engine.ace_step.engine import AceStepEngine

    began = time.monotonic()
    facts = AceStepEngine(name, model, cache).load(lambda *_: None)
    return f"loaded on {facts.device} and played in {time.monotonic() - began:.1f} s"

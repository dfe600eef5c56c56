"""`sophia doctor`: checks before a deploy what the deploy needs, and reports the error codes that it would fail with.

Each check imports what it uses, so that a missing package is one failed check and the other checks still run.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Final

from serve_app import errors
from serve_app.config import AppArgs, ModelArgs
from serve_app.config.sources import BUILT_IN, NOTES, PACKAGED, SIMULATED

DISTRIBUTION: Final = "sophia-music"
_LEAST_FREE_BYTES: Final = 1_000_000_000
"""Enough space for a database, logs and a few hundred songs."""


@dataclass(frozen=True)
class Finding:
    """The result of one check. `code` is None if it passed, else a code of errors.py. `message` is one or two sentences."""

    check: str
    code: str | None
    message: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.code is None else f'FAIL {self.code}:'} {self.check}: {self.message}"


def check(args: AppArgs, http_host: str | None = None, load: bool = False) -> Iterator[Finding]:
    """Run the checks one after the other.

    `http_host` is the address that Serve will listen on; None skips the check of API keys. `load` adds a check that loads each
    model and generates a test song. Without `load` nothing is fetched and nothing is changed, except that the database file and
    the audio folder may be created.
    """
    yield _result("packages", _packages)
    yield _result("database", lambda: _database(args))
    yield _result("audio store", lambda: _artifacts(args))
    yield _result("disk", lambda: _disk(args.data_dir))
    if http_host is not None:
        yield _result("API keys", lambda: _keys(args, http_host))
    for name, model in args.models.items():
        if model.source != SIMULATED:
            yield from _model(name, model, args.weights_dir, load)


def run(args: AppArgs, http_host: str | None = None, load: bool = False) -> int:
    """Run the checks, print a line for each as soon as it is done, and return the exit status: 1 if any check failed."""
    failed = 0
    for finding in check(args, http_host, load):
        print(finding, flush=True)
        failed += finding.code is not None
    return 1 if failed else 0


def _model(name: str, model: ModelArgs, cache: Path, load: bool) -> Iterator[Finding]:
    yield _result(f"{name}, device", lambda: _device(name, model))
    yield _result(f"{name}, checkpoint", lambda: _checkpoint(name, _source(name, model), cache))
    if load:
        yield _result(f"{name}, load", lambda: _load(name, _source(name, model), cache))


def _result(name: str, run_check: Callable[[], str]) -> Finding:
    """Run one check. An exception becomes a finding with the code of the error."""
    try:
        return Finding(name, None, run_check())
    except errors.SophiaError as error:
        return Finding(name, error.code, error.message)
    except ImportError as error:
        package = (error.name or "").split(".")[0] or "a package"
        return Finding(name, errors.PackageMissing.code, f"{package} cannot be imported ({error}).")
    except Exception as error:  # an unexpected error must not skip the remaining checks
        return Finding(name, errors.SophiaError.code, f"{type(error).__name__}: {error}")


# --- The checks: each returns what it found as text, or raises ------------------------------------------------------


def _packages() -> str:
    """Every package that Sophia requires is installed in a supported version and can be imported."""
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
            f"{DISTRIBUTION} is not installed, so its required packages are unknown. Run in its folder: pip install -e ."
        ) from None


def _check_version(wanted: str) -> None:
    """Raise PackageMissing or PackageMismatch unless a requirement such as `numpy>=2` is met."""
    from packaging.requirements import Requirement

    requirement = Requirement(wanted)
    if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
        return
    try:
        found = version(requirement.name)
    except PackageNotFoundError:
        raise errors.PackageMissing(f"{requirement.name} is not installed. Run: pip install '{requirement}'") from None
    if not requirement.specifier.contains(found, prereleases=True):
        raise errors.PackageMismatch(
            f"{requirement.name} {found} is installed; Sophia needs {requirement}. Run: pip install '{requirement}'"
        )


def _database(args: AppArgs) -> str:
    """The database answers, and its schema is not newer than this version of Sophia."""
    from serve_app.store import Store, revisions

    with closing(Store(args.resolved_database_url, args.database)) as store:
        with store.database.read() as connection:
            found = revisions.current(connection)
        kind = "SQLite" if store.database.is_sqlite else "PostgreSQL"
    if not found:
        return f"{kind} answers. The first start creates its tables."
    if found == revisions.known()[:1]:
        return f"{kind} answers. Its tables are current."
    return f"{kind} answers. Its tables are older; the next start updates them."


def _artifacts(args: AppArgs) -> str:
    """The audio store allows writing, reading and deleting."""
    from serve_app.artifacts import Artifacts

    Artifacts(args.resolved_artifacts_url).probe()
    return f"{args.resolved_artifacts_url.partition('://')[0]}:// allows writing, reading and deleting."


def _disk(folder: Path) -> str:
    """The disk of the data folder has space for a start."""
    free = _free_bytes(folder)
    if free < _LEAST_FREE_BYTES:
        raise errors.DiskFull(
            f"{folder} has {free / 1e9:.1f} GB free; Sophia needs {_LEAST_FREE_BYTES / 1e9:g} GB. Free some space or change "
            "data_dir."
        )
    return f"{folder} has {free / 1e9:.0f} GB free."


def _free_bytes(folder: Path) -> int:
    """Free space on the disk that holds the folder, which need not exist yet."""
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    return shutil.disk_usage(existing).free


def _keys(args: AppArgs, http_host: str) -> str:
    """There is an API key if the address that Serve listens on requires one."""
    from serve_app.api.listen_policy import require_a_key
    from serve_app.store import Store

    with closing(Store(args.resolved_database_url, args.database)) as store:
        require_a_key(args, store, http_host)
    return f"auth.mode: {args.auth.mode} allows Sophia to listen on {http_host}."


def _device(name: str, model: ModelArgs) -> str:
    """This machine has the device that the model is configured for."""
    from serve_app.engine.ace_step.device import choose_device, device_name, free_memory

    device = choose_device(name, model)
    return f"{device_name(device)}, {free_memory(device) / 1e9:.1f} GB free."


def _source(name: str, model: ModelArgs) -> ModelArgs:
    """The model with the `source` that the cluster would choose for `auto`, but with its `device` left as configured."""
    from serve_app.weights import auto

    known, _ = auto.settled(name, model, auto.hardware_from_outside) if model.source == "auto" else (model, "")
    return known.model_copy(update={"device": model.device})


def _checkpoint(name: str, model: ModelArgs, cache: Path) -> str:
    """The checkpoint is complete on this machine, or can be fetched and fits on the disk."""
    from serve_app import weights
    from serve_app.weights import embedded

    if model.source in PACKAGED:
        embedded.check(model.source)
    if model.source in BUILT_IN:
        return f"{model.source} comes with Sophia: {NOTES[model.source]}."
    if missing := weights.missing_bytes(name, model, cache):
        return _space_for_download(name, model, cache, missing)
    facts = weights.verify(weights.resolve(name, model, cache, lambda *_: None), model)
    return f"{model.source} is complete: {facts.variant}, {facts.bytes / 1e9:.2f} GB."


def _space_for_download(name: str, model: ModelArgs, cache: Path, missing_bytes: int) -> str:
    """Says that the checkpoint can be fetched. Raises DiskFull if the disk is too small for it."""
    free = _free_bytes(cache)
    if missing_bytes > free:
        raise errors.DiskFull(
            f"{model.source} needs {missing_bytes / 1e9:.2f} GB more in {cache}, which has {free / 1e9:.2f} GB free. Free some "
            "space or change data_dir."
        )
    return (
        f"{model.source} is not in the cache yet. The first start fetches {missing_bytes / 1e9:.2f} GB; "
        f"'sophia weights pull {name}' fetches it now."
    )


def _load(name: str, model: ModelArgs, cache: Path) -> str:
    """The model loads and generates a test song."""
    from serve_app.engine.ace_step.engine import AceStepEngine

    began = time.monotonic()
    facts = AceStepEngine(name, model, cache).load(lambda *_: None)
    return f"loaded on {facts.device} and generated a test song in {time.monotonic() - began:.1f} s."

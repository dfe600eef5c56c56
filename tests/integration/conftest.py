"""Fixtures of the integration tests."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.artifacts import Artifacts
from serve_app.engine.ace_step.engine import AceStepEngine
from serve_app.store import Store
from tests.support.engines import base_engine
from tests.support.hub import Hub, serving
from tests.support.migrated import migrate
from tests.support.running import SONG, Service, running, simulated
from tests.support.webhooks import Receiver, running_receiver


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A receiver that answers 204."""
    with running_receiver() as receiver:
        yield receiver


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Store]:
    """A store on SQLite, for tests in which the kind of database does not matter."""
    store = Store(f"sqlite:///{tmp_path / 'jobs.db'}")
    migrate(store)
    yield store
    store.close()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two models. The first has one worker, the second has none."""
    models = {"ace-step": simulated(), "asleep": simulated(workers=0)}
    with running(tmp_path_factory.mktemp("api"), models) as service:
        yield service


@pytest.fixture(scope="module")
def song(service: Service) -> dict[str, Any]:
    """A finished job with two files."""
    return service.ended(service.submit(**SONG, variations=2)["id"])


@pytest.fixture
def hub(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the random checkpoint, which this process is pointed at."""
    with serving(checkpoint) as running:
        monkeypatch.setenv("HF_ENDPOINT", running.endpoint)
        yield running


@pytest.fixture
def copy(checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the random checkpoint that a test may break."""
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.fixture
def artifacts(tmp_path: Path) -> Artifacts:
    """An empty folder of audio."""
    return Artifacts((tmp_path / "audio").as_uri())


@pytest.fixture(scope="module")
def base(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> AceStepEngine:
    """An engine with the random checkpoint as a base model, which has guidance. Its VAE encodes audio to latents of 64 channels."""
    engine = base_engine(checkpoint, tmp_path_factory.mktemp("base"))
    engine.load(lambda phase, fraction, detail: None)
    return engine

"""The autoscaling policy in Serve's controller: its thread, its answers, and how Serve ships it."""

import gc
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from ray.serve.autoscaling_policy import _apply_autoscaling_config
from ray.serve.config import AutoscalingConfig, AutoscalingContext

from serve_app.config import ScalingArgs
from serve_app.scaling import serve_policy
from serve_app.scaling.policy import Observation
from serve_app.scaling.serve_policy import QueuePolicy, autoscaling_config
from tests.support.helpers import eventually
from tests.support.scaling import BOUNDS, NOTHING, waiting


class Desk:
    """A store for the policy's thread, which the test makes answer, hang or fail: what no real one does on demand."""

    def __init__(self) -> None:
        self.seen = NOTHING
        self.error: Exception | None = None
        self.answers = threading.Event()
        self.answers.set()
        self.asked = 0
        self.published: list[tuple[int, str]] = []
        self.closed = threading.Event()

    def observe(self) -> Observation:
        self.asked += 1
        self.answers.wait()
        if self.error is not None:
            raise self.error
        return self.seen

    def publish(self, target: int, reason: str) -> None:
        self.published.append((target, reason))

    def close(self) -> None:
        self.closed.set()


desks: dict[str, Desk] = {}


def open_desk(bounds: ScalingArgs, name: str) -> Desk:
    return desks[name]


@pytest.fixture
def desk(request: pytest.FixtureRequest) -> Iterator[Desk]:
    """A desk that policies of this test find by its name."""
    desks[request.node.name] = made = Desk()
    yield made
    made.answers.set()
    del desks[request.node.name]


@pytest.fixture
def policy(desk: Desk, request: pytest.FixtureRequest) -> Iterator[QueuePolicy]:
    """A policy that looks at the desk a hundred times a second."""
    made = QueuePolicy(
        BOUNDS.model_dump(), "tests.unit.test_serve_policy:open_desk", {"name": request.node.name}, period_s=0.01
    )
    yield made
    made._reader.ended.set()


def ask(policy: QueuePolicy, current: int = 0) -> tuple[int, str]:
    target, state = policy(SimpleNamespace(target_num_replicas=current))
    return target, state["reason"]


def test_the_policy_hands_out_and_publishes_what_was_decided(policy: QueuePolicy, desk: Desk) -> None:
    """Work that comes in changes the answer and what health shows."""
    desk.seen = waiting(40, 2000.0)
    eventually(lambda: ask(policy)[0] == 20)
    assert desk.published[-1] == ask(policy)
    assert "2000 s of work" in desk.published[-1][1]


def test_before_the_first_look_everything_stays(policy: QueuePolicy, desk: Desk) -> None:
    """A store that hangs from the beginning delays no call, and changes nothing."""
    desk.answers.clear()
    assert ask(policy, 7)[0] == 7
    eventually(lambda: desk.asked)
    target, reason = ask(policy, 7)
    assert target == 7
    assert reason.startswith("keeping 7 workers: the job store is awaited")


def test_a_store_that_hangs_holds_no_call(policy: QueuePolicy, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call returns while the store does not; the last target stays, and the reason comes to say why."""
    monkeypatch.setattr(serve_policy, "STALE_S", 0.05)
    desk.seen = waiting(40, 2000.0)
    eventually(lambda: ask(policy)[0] == 20)
    desk.answers.clear()
    target, reason = eventually(lambda: found if (found := ask(policy, 20))[1].startswith("keeping 20") else None)
    assert target == 20
    assert "has not answered" in reason
    desk.answers.set()
    eventually(lambda: "2000 s of work" in ask(policy, 20)[1])


def test_a_store_that_fails_keeps_the_target(policy: QueuePolicy, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last target stays with the cause beside it, until the store is back."""
    monkeypatch.setattr(serve_policy, "STALE_S", 0.05)
    desk.seen = waiting(40, 2000.0)
    eventually(lambda: ask(policy)[0] == 20)
    desk.seen = NOTHING
    desk.error = ConnectionError("connection refused")
    target, reason = eventually(lambda: found if (found := ask(policy, 20))[1].startswith("keeping 20") else None)
    assert target == 20
    assert "ConnectionError: connection refused" in reason
    desk.error = None
    eventually(lambda: ask(policy, 20)[0] == 0)


def open_nothing(bounds: ScalingArgs, tries: str) -> Desk:
    desks[tries].asked += 1
    raise ConnectionError("no database")


def test_a_store_that_cannot_be_opened_keeps_the_target(
    desk: Desk, request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> None:
    """The present number stays; it is tried again and again, and the cause is logged once."""
    serve_policy.logger.addHandler(caplog.handler)
    policy = QueuePolicy(
        BOUNDS.model_dump(), "tests.unit.test_serve_policy:open_nothing", {"tries": request.node.name}, period_s=0.01
    )
    eventually(lambda: ask(policy, 3) and desk.asked > 5)
    target, reason = ask(policy, 3)
    policy._reader.ended.set()
    serve_policy.logger.removeHandler(caplog.handler)
    assert (target, reason) == (3, "keeping 3 workers: the job store is awaited (ConnectionError: no database)")
    assert len({record for record in caplog.records if "no database" in record.getMessage()}) == 1


def test_a_policy_that_serve_has_dropped_ends_its_thread(desk: Desk, request: pytest.FixtureRequest) -> None:
    """Serve makes a new policy at each deploy and does not say so to the old one: its thread ends and closes the store."""
    _ask_a_policy_and_drop_it(desk, request.node.name)
    gc.collect()
    assert desk.closed.wait(30)


def _ask_a_policy_and_drop_it(desk: Desk, name: str) -> None:
    policy = QueuePolicy(BOUNDS.model_dump(), "tests.unit.test_serve_policy:open_desk", {"name": name}, period_s=0.01)
    eventually(lambda: ask(policy) and desk.asked)


def test_what_serve_wraps_around_the_policy_changes_nothing(policy: QueuePolicy, desk: Desk) -> None:
    """Through Serve's own wrapper, with our configuration: from zero to all at once, and to zero when the breaker opens."""
    config = AutoscalingConfig(**autoscaling_config(BOUNDS, "tests.unit.test_serve_policy:open_desk", {"name": "none"}))
    wrapped = _apply_autoscaling_config(policy)
    desk.seen = waiting(40, 2000.0)
    eventually(lambda: wrapped(context(config, running=0, target=0))[0] == 20)
    desk.seen = waiting(40, 2000.0, breaker="it cannot be loaded")
    # Serve goes to zero by way of one
    eventually(lambda: wrapped(context(config, running=20, target=20))[0] == 1)
    assert wrapped(context(config, running=1, target=1))[0] == 0


def context(config: AutoscalingConfig, running: int, target: int) -> AutoscalingContext:
    return AutoscalingContext(
        deployment_id=None,
        deployment_name="workers",
        app_name="sophia",
        current_num_replicas=running,
        target_num_replicas=target,
        running_replicas=[],
        total_num_requests=0,
        total_queued_requests=0,
        aggregated_metrics=None,
        raw_metrics=None,
        capacity_adjusted_min_replicas=config.min_replicas,
        capacity_adjusted_max_replicas=config.max_replicas,
        policy_state={},
        last_scale_up_time=None,
        last_scale_down_time=None,
        current_time=None,
        config=config,
    )


def test_the_policy_survives_the_way_that_serve_ships_it() -> None:
    """Serve pickles the policy's module by value: the copy decides as the original, in a process that has nothing else."""
    shipped = AutoscalingConfig(**autoscaling_config(BOUNDS, "tests.nowhere:open", {})).policy
    program = """
import sys
from types import SimpleNamespace
import ray.cloudpickle
policy = ray.cloudpickle.loads(sys.stdin.buffer.read())(bounds={"max_workers": 9}, source="tests.nowhere:open", source_kwargs={})
print(policy(SimpleNamespace(target_num_replicas=4))[0])
"""
    run = subprocess.run(
        [sys.executable, "-c", program], input=shipped.get_serialized_policy_def(), capture_output=True, check=False
    )
    assert run.stdout.split() == [b"4"], run.stderr.decode()


def test_the_policy_imports_nothing_heavy() -> None:
    """Serve's controller, the dashboard and the command line import it."""
    program = "import sys, serve_app.scaling.serve_policy; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "diffusers", "transformers", "sqlalchemy", "numpy", "ray", "fastapi"} & set(loaded)

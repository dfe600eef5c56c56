"""How senders divide their work among receivers and owners."""

import threading
from collections.abc import Sequence

import pytest

from serve_app.background.webhook_sender import Sender
from serve_app.background.webhook_sender.receivers import receiver_at
from serve_app.config import QueueArgs
from serve_app.errors import QuotaExceeded
from serve_app.jobs import Job
from serve_app.music import MusicRequest
from serve_app.store import Store
from serve_app.store.jobs import Admission
from serve_app.store.webhooks import Delivery
from tests.support.helpers import eventually
from tests.support.webhooks import Receiver, final_delivery, running_receiver, running_sender, succeeded_with_webhook


def test_many_senders_share_the_work(store: Store, receiver: Receiver, store_url: str) -> None:
    """Three senders send each of twenty events once."""
    made = [succeeded_with_webhook(store, receiver.url) for _ in range(20)]
    others = [Store(store_url) for _ in range(2)]
    with running_sender(store), running_sender(others[0]), running_sender(others[1]):
        ids = {final_delivery(store, job).id for job in made}
    for other in others:
        other.close()
    assert sorted(request.headers["webhook-id"] for request in receiver.received) == sorted(ids)


def test_a_slow_receiver_does_not_hold_up_the_others(store: Store, receiver: Receiver) -> None:
    """Events to a fast host arrive while a slow host gets only a few at a time."""
    with running_receiver(host="127.0.0.2") as slow:
        slow.hold = threading.Event()
        stuck = [succeeded_with_webhook(store, slow.url) for _ in range(12)]
        quick = [succeeded_with_webhook(store, receiver.url) for _ in range(5)]
        with running_sender(store, timeout_s=60):
            assert {final_delivery(store, job).state for job in quick} == {"delivered"}
            assert len(slow.received) <= 2
            slow.hold.set()
            assert {final_delivery(store, job).state for job in stuck} == {"delivered"}


@pytest.mark.fault("B9")
def test_many_names_of_one_machine_are_one_receiver(store: Store, receiver: Receiver) -> None:
    """Twelve names of one slow machine occupy two senders, and waiting for it costs no attempt."""
    with running_receiver(host="127.0.0.2") as slow:
        slow.hold = threading.Event()
        stuck = [succeeded_with_webhook(store, f"http://n{number}.slow.example:{slow.port}/") for number in range(12)]
        quick = [
            succeeded_with_webhook(store, f"http://n{number}.quick.example:{receiver.port}/") for number in range(5)
        ]
        found = {"slow": ["127.0.0.2"], "quick": ["127.0.0.1"]}
        with running_sender(store, timeout_s=60, resolve=lambda host, port: found[host.split(".")[1]]):
            assert {final_delivery(store, job).state for job in quick} == {"delivered"}
            assert len(slow.received) <= 2
            slow.hold.set()
            ended = [final_delivery(store, job) for job in stuck]
        assert {(delivery.state, delivery.attempts) for delivery in ended} == {("delivered", 1)}
        assert len(slow.received) == 12


@pytest.mark.fault("B9")
def test_one_owner_does_not_take_every_sender(store: Store, receiver: Receiver) -> None:
    """An owner with twelve slow machines leaves half of the senders to others, and idle owners come first."""
    with running_receiver(host="0.0.0.0") as slow:  # noqa: S104  it is many machines
        slow.hold = threading.Event()
        stuck = [
            succeeded_with_webhook(store, f"http://127.0.1.{number}:{slow.port}/", "greedy") for number in range(1, 13)
        ]
        quick = [succeeded_with_webhook(store, receiver.url, "modest") for _ in range(5)]
        with running_sender(store, timeout_s=60):
            assert {final_delivery(store, job).state for job in quick} == {"delivered"}
            assert len(slow.received) <= 4
            slow.hold.set()
            assert {final_delivery(store, job).state for job in stuck} == {"delivered"}


@pytest.mark.fault("B9")
def test_a_receiver_that_one_owner_floods_is_open_to_others(store: Store) -> None:
    """If one owner fills a receiver's places, the next free place goes to another owner."""
    with running_receiver(host="127.0.0.2") as shared:
        shared.hold = threading.Event()
        flood = [succeeded_with_webhook(store, f"{shared.url}/flood", "greedy") for _ in range(12)]
        late = succeeded_with_webhook(store, f"{shared.url}/late", "modest")
        with running_sender(store, timeout_s=60, limits={"per_receiver": 1}):
            eventually(lambda: shared.received)
            shared.hold.set()
            assert {final_delivery(store, job).state for job in [*flood, late]} == {"delivered"}
        assert [request.path for request in shared.received].index("/hook/late") <= 1


def test_a_place_that_becomes_free_during_a_claim_goes_to_another_owner(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a receiver becomes free after other owners were looked for, its next event is still another owner's."""
    claim = store.webhooks.claim
    with running_receiver(host="127.0.0.2") as shared:
        held = threading.Event()
        shared.hold = held
        flood = [succeeded_with_webhook(store, f"{shared.url}/flood", "greedy") for _ in range(3)]
        late = succeeded_with_webhook(store, f"{shared.url}/late", "modest")
        sender: list[Sender] = []

        def free_the_place_after(
            lease_s: float, busy: Sequence[str] = (), busy_owners: Sequence[str] = ()
        ) -> Delivery | None:
            claimed = claim(lease_s, busy, busy_owners)
            if busy and "greedy" in busy_owners and not held.is_set():
                held.set()
                eventually(lambda: sender and not sender[0]._receivers.busy())
            return claimed

        monkeypatch.setattr(store.webhooks, "claim", free_the_place_after)
        with running_sender(store, timeout_s=60, limits={"per_receiver": 1}) as started:
            sender.append(started)
            assert {final_delivery(store, job).state for job in [*flood, late]} == {"delivered"}
        assert [request.path for request in shared.received].index("/hook/late") == 1


@pytest.mark.fault("B9")
def test_an_owner_may_have_so_many_webhooks_on_their_way(store: Store) -> None:
    """With so many, a job that names a URL is refused, with the reason; one without, another owner's, and one after a delivery
    are taken."""
    limits = QueueArgs(max_owner_webhooks=2)

    def ask(owner: str, url: str | None = "https://hooks.example/") -> Job:
        request = MusicRequest(prompt="piano", model="m", seed=1, webhook_url=url)
        return store.jobs.submit(request, owner=owner, deadline_s=600, max_attempts=3, admission=Admission(limits))[0]

    made = [ask("studio") for _ in range(2)]
    for job in made:
        store.jobs.cancel(job.id)
    with pytest.raises(QuotaExceeded, match=r"You have 2 pending webhooks, and queue\.max_owner_webhooks is 2"):
        ask("studio")
    with pytest.raises(QuotaExceeded):
        store.jobs.retry(made[0].id, 3, limits=limits)
    ask("studio", url=None)
    ask("another")
    assert store.webhooks.pending("studio") == 2
    delivery = store.webhooks.claim(60)
    assert delivery is not None
    assert store.webhooks.record(delivery, "delivered", status=200)
    ask("studio")


def test_addresses_of_one_network_are_one_receiver() -> None:
    """Receivers are counted by IPv4 address, in any spelling, or by IPv6 network."""
    assert receiver_at("192.0.2.1") == receiver_at("::ffff:192.0.2.1") == "192.0.2.1"
    assert receiver_at("2001:db8::1") == receiver_at("2001:db8::ffff:2") != receiver_at("2001:db8:0:1::1")

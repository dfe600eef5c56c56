"""The store's leases, each held by one process at a time."""

import threading

from serve_app.store import Store


def test_a_lease_has_one_holder_until_it_ends_or_rests(store: Store) -> None:
    """Its holder can extend a lease; others take it over after it runs out, but nobody does while it rests."""
    assert store.leases.take("a", "one", 60)
    assert store.leases.take("a", "one", 0)
    assert store.leases.take("a", "two", 60)
    assert not store.leases.take("a", "one", 60)
    assert store.leases.take("b", "one", 60)
    store.leases.release("a", "one", 0)  # not its to give up
    assert not store.leases.take("a", "one", 60)
    store.leases.release("a", "two", 60)
    assert not store.leases.take("a", "two", 60)


def test_one_of_many_gets_the_lease(store: Store, store_url: str) -> None:
    """Of eight that ask at once for a new lease, exactly one gets it."""
    together = threading.Barrier(8)
    got: list[bool] = []

    def ask(n: int) -> None:
        mine = Store(store_url)
        together.wait()
        got.append(mine.leases.take("a", str(n), 60))
        mine.close()

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == [False] * 7 + [True]

"""Voices in the database: owners, limits, and the inputs that they keep."""

import pytest

from serve_app.artifacts import Artifacts
from serve_app.background import janitor
from serve_app.errors import Conflict, NotFound, QuotaExceeded
from serve_app.store import Store
from tests.support.retention import KEPT, always, keys
from tests.support.stored_inputs import TTL_S, add


def put(store: Store, letter: str = "a", name: str = "anna", owner: str = "me") -> bool:
    return store.voices.put(owner, name, letter * 64, TTL_S, most=2)


def test_a_name_belongs_to_one_owner(store: Store) -> None:
    """Two owners have a voice of the same name, and neither sees the other's."""
    add(store)
    add(store, owner="you", letter="b")

    assert put(store)
    assert put(store, "b", owner="you")

    assert store.voices.get("me", "anna").sha256 == "a" * 64
    assert [voice.sha256 for voice in store.voices.all("you")] == ["b" * 64]
    with pytest.raises(NotFound):
        store.voices.delete("nobody", "anna")


def test_a_voice_needs_an_input_of_its_owner(store: Store) -> None:
    """One of another owner, and one that has expired, are not found."""
    add(store, owner="you")
    add(store, letter="b", age_s=2 * TTL_S)

    for letter in "ab":
        with pytest.raises(NotFound, match=f"no input {letter}"):
            put(store, letter)

    assert store.voices.all("me") == []


def test_an_owner_may_have_only_so_many_voices(store: Store) -> None:
    """The limit counts new names only, and each owner's for itself."""
    add(store)
    add(store, owner="you")
    made = [put(store, name=name) for name in ("one", "two", "two")]

    with pytest.raises(QuotaExceeded, match="2 voices, and the maximum is 2"):
        put(store, name="three")

    assert made == [True, True, False]
    assert put(store, owner="you")
    assert store.voices.count("me") == 2


def test_a_voice_keeps_its_input_and_no_other(store: Store, artifacts: Artifacts) -> None:
    """Neither the janitor nor the owner deletes it, even when it has expired; another owner's of the same content goes."""
    kept = add(store, artifacts)
    add(store, artifacts, owner="you")
    put(store)
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE inputs SET expires_at = 1")

    janitor.expire(store, artifacts, KEPT, always)
    with pytest.raises(Conflict, match="it is the voice 'anna'"):
        store.inputs.delete("me", kept.sha256)

    assert keys(artifacts) == {kept.key}
    assert store.inputs.get("me", kept.sha256).key == kept.key
    assert [one.key for one in store.inputs.page("me", None, 10)] == [kept.key]


def test_an_expired_input_of_a_voice_can_be_the_voice_of_another_name(store: Store) -> None:
    """It counts as used then, so it stays when the first voice is deleted."""
    add(store)
    put(store)
    with store.database.write() as connection:
        connection.exec_driver_sql("UPDATE inputs SET expires_at = 1")

    put(store, name="another")
    for name in ("anna", "another"):
        store.voices.delete("me", name)

    assert store.inputs.get("me", "a" * 64).sha256 == "a" * 64

"""Checkpoints that cannot be fetched: the error names the cause."""

from pathlib import Path

import pytest

from serve_app import errors, weights
from serve_app.config import ModelArgs
from tests.support.checkpoints import REMOTE
from tests.support.hub import REPOSITORY, Hub, serving


def test_an_unknown_repository_is_named(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A repository that the hub does not know is an error that names it and keeps the token to itself."""
    monkeypatch.setenv("HF_TOKEN", "hf_not_a_real_token")

    with pytest.raises(errors.UnknownRepository, match=r"no repository sophia/other.*HF_TOKEN") as caught:
        weights.resolve("m", ModelArgs(source="sophia/other"), tmp_path, lambda *report: None)

    assert "hf_not" not in caught.value.message


@pytest.mark.fault("E13")
def test_a_gated_repository_says_what_to_do(hub: Hub, tmp_path: Path) -> None:
    """A repository whose terms were not accepted is an error that says so, at the first refusal of a file."""
    hub.gated = True

    with pytest.raises(errors.UnknownRepository, match="is gated"):
        weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert set(hub.refused.values()) == {1}  # no file is asked for again


@pytest.mark.fault("E12")
def test_a_refused_token_is_named_as_the_cause(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A token that the hub refuses is an error of its own, which does not repeat the token."""
    monkeypatch.setenv("HF_TOKEN", "hf_expired")
    hub.revoked = "hf_expired"

    with pytest.raises(errors.HubTokenRefused, match="rejects this node's token") as caught:
        weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert "hf_expired" not in caught.value.message


@pytest.mark.fault("E3", "E12")
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_hub_that_cannot_serve_is_reported_with_its_status(status: int, hub: Hub, tmp_path: Path) -> None:
    """A hub that answers 429 or 5xx is a transient cause, and the error names the status and the wait that it asks for."""
    hub.refusals = [status] * 20

    with pytest.raises(errors.HubUnreachable, match=rf"it answered {status} and asked to wait 30 s") as caught:
        weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

    assert caught.value.cause == "transient"


@pytest.mark.parametrize("source", ["not/a repository", "a/b/c", "./models/ace"])
def test_a_source_of_no_known_form_is_refused(source: str, tmp_path: Path) -> None:
    """A source that is neither a repository id nor an absolute folder is refused, before any network is used."""
    with pytest.raises(errors.UnknownRepository, match="neither a repository id"):
        weights.resolve("m", ModelArgs(source=source), tmp_path, lambda *report: None)


def test_an_unknown_revision_is_named(hub: Hub, tmp_path: Path) -> None:
    """A revision that the repository does not have is an error that names both."""
    with pytest.raises(errors.UnknownRevision, match=r"models\.m\.revision: sophia/tiny has no revision 'v9'"):
        weights.resolve("m", ModelArgs(source=REPOSITORY, revision="v9"), tmp_path, lambda *report: None)


def test_an_unreachable_hub_with_nothing_cached_says_so(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a hub and without a cached checkpoint, the error names the host and what can be done."""
    with serving(checkpoint) as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)

    with pytest.raises(errors.HubUnreachable, match=r"127\.0\.0\.1 did not answer .* not in the cache"):
        weights.resolve("m", REMOTE, tmp_path, lambda *report: None)

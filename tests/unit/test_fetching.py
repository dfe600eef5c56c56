"""Fetching recordings: which addresses are connected to."""

import pytest

from serve_app.api.fetching import Fetcher
from serve_app.api.recording import Recording
from serve_app.config import InputArgs
from serve_app.errors import InvalidRequest


@pytest.mark.parametrize("addresses", [["127.0.0.1"], ["10.0.0.1"], ["::1"], ["93.184.216.34", "169.254.169.254"]])
def test_a_name_that_leads_to_an_internal_address_is_not_asked(addresses: list[str]) -> None:
    """All addresses of a name must be public, so DNS cannot lead into this network."""
    fetcher = Fetcher(InputArgs(), lambda host, port: addresses)
    recording = Recording(limit=1000)
    with pytest.raises(InvalidRequest, match=r"reference: .*files\.example is not a public address"):
        fetcher.fetch("reference", "https://files.example/song.wav", recording)
    recording.close()


def test_a_name_without_an_address_is_reported() -> None:
    """The error names the field and the host."""

    def unknown(host: str, port: int) -> list[str]:
        raise OSError("no such host")

    recording = Recording(limit=1000)
    with pytest.raises(InvalidRequest) as refused:
        Fetcher(InputArgs(), unknown).fetch("source", "https://files.example/song.wav", recording)
    recording.close()
    (wrong,) = refused.value.wrong_fields
    assert (wrong.field, wrong.value) == ("source", "https://files.example/song.wav")
    assert "files.example has no address" in wrong.message

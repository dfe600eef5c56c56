"""Fetches a recording from an address that a client has given, under the address checks of the webhook sender."""

import time
from typing import Final

import httpcore
import httpx

from serve_app import __version__
from serve_app.api.field_errors import wrong_field
from serve_app.api.recording import Recording
from serve_app.background.webhook_sender.addresses import Resolve, check_url
from serve_app.background.webhook_sender.network import CheckedNetwork
from serve_app.config import InputArgs
from serve_app.errors import BodyTooLarge, InvalidRequest

_MAX_REDIRECTS: Final = 5
_REDIRECTS: Final = (301, 302, 303, 307, 308)
_MAX_REASON: Final = 200


class Fetcher:
    """Fetches recordings. Thread-safe; `fetch` blocks."""

    def __init__(self, args: InputArgs, resolve: Resolve) -> None:
        self._args = args
        self._resolve = resolve
        self._tls = httpx.create_ssl_context()

    def fetch(self, field: str, url: str, recording: Recording) -> None:
        """Write what the address answers with to the recording. Raises InvalidRequest, which names `field`.

        Every redirect is checked as the first address is, and all of them share one deadline.
        """
        deadline = time.monotonic() + self._args.fetch_timeout_s
        try:
            self._follow(field, url, recording, deadline)
        except BodyTooLarge as error:
            raise wrong_field(field, url, error.message) from error
        except (httpx.InvalidURL, ValueError) as error:  # of the client or of a redirect
            raise wrong_field(
                field, url, f"cannot be fetched: it is, or leads to, an invalid address ({error})"
            ) from error
        except httpcore.TimeoutException as error:
            limit = f"{self._args.fetch_timeout_s:g} s, the maximum (inputs.fetch_timeout_s)"
            raise wrong_field(field, url, f"did not arrive within {limit}") from error
        except (
            httpcore.ProtocolError
        ) as error:  # its text quotes the answer, which the client may have no right to read
            raise wrong_field(field, url, "cannot be fetched: the answer was incomplete or not HTTP") from error
        except httpcore.NetworkError as error:
            reason = str(error)[:_MAX_REASON] or type(error).__name__
            raise wrong_field(field, url, f"cannot be fetched: {reason}") from error

    def _follow(self, field: str, url: str, recording: Recording, deadline: float) -> None:
        address = httpx.URL(url)
        for _ in range(_MAX_REDIRECTS + 1):
            self._check(field, address)
            location = self._get(field, address, recording, deadline)
            if location is None:
                return
            address = address.join(location)
        raise wrong_field(field, url, f"cannot be fetched: it redirects more than {_MAX_REDIRECTS} times")

    def _check(self, field: str, address: httpx.URL) -> None:
        if address.scheme != "https" and not self._args.allow_private:
            raise wrong_field(field, str(address), "cannot be fetched: the address must begin with https://")
        try:
            check_url(str(address), self._args.allow_private, field)
        except InvalidRequest as error:
            raise wrong_field(field, str(address), error.message.removeprefix(f"{field}: ")) from error

    def _get(self, field: str, address: httpx.URL, recording: Recording, deadline: float) -> str | None:
        """Fetch one address. Returns the address that it redirects to, if it does."""
        target = httpcore.URL(
            scheme=address.raw_scheme, host=address.raw_host, port=address.port, target=address.raw_path
        )
        headers = {
            "Host": address.netloc.decode("ascii"),
            "User-Agent": f"Sophia/{__version__}",
            "Accept": "audio/*, */*;q=0.1",
            "Accept-Encoding": "identity",
        }
        network = CheckedNetwork(self._resolve, lambda _: True, self._args.allow_private, deadline)
        with (
            httpcore.ConnectionPool(ssl_context=self._tls, network_backend=network) as http,
            http.stream("GET", target, headers=list(headers.items())) as answer,
        ):
            if answer.status in _REDIRECTS:
                received = {name.lower(): value.decode("latin-1") for name, value in answer.headers}
                return received.get(b"location", "")
            if answer.status != 200:
                raise wrong_field(field, str(address), f"cannot be fetched: the server answered {answer.status}")
            for chunk in answer.iter_stream():
                recording.write(chunk)
        return None

"""Which URLs and addresses webhooks may be sent to."""

from ipaddress import ip_address

import pytest

from serve_app.background.webhook_sender import check_url, is_public, resolve
from serve_app.errors import InvalidRequest
from serve_app.music import MusicRequest

INSIDE = [
    "0.0.0.0", "10.1.2.3", "100.64.0.1", "127.0.0.1", "127.255.255.254", "169.254.169.254", "172.16.0.1", "172.31.255.255",  # noqa: S104 - to refuse
    "192.0.0.8", "192.0.2.1", "192.88.99.1", "192.168.1.1", "198.18.0.1", "198.51.100.1", "203.0.113.1", "224.0.0.1",
    "239.1.1.1", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::7f00:1", "::ffff:127.0.0.1", "::ffff:8.8.8.8", "::ffff:0:7f00:1", "64:ff9b::7f00:1", "64:ff9b:1::1",
    "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "3fff::1", "5f00::1", "fc00::1", "fd12::1", "fe80::1", "fec0::1",
    "ff02::1",
]  # fmt: skip
PUBLIC = [
    "1.1.1.1",
    "8.8.8.8",
    "100.63.255.255",
    "172.32.0.1",
    "192.0.1.1",
    "223.255.255.255",
    "2606:4700::1111",
    "2a00::1",
]


@pytest.mark.parametrize("address", INSIDE)
def test_addresses_inside_are_known(address: str) -> None:
    """Private, loopback, link-local, shared, reserved, multicast, mapped and translated addresses are not public."""
    assert not is_public(ip_address(address))


@pytest.mark.parametrize("address", PUBLIC)
def test_public_addresses_are_known(address: str) -> None:
    """Addresses beside the special blocks are public."""
    assert is_public(ip_address(address))


@pytest.mark.parametrize("address", INSIDE)
def test_a_url_with_an_address_inside_is_refused_at_once(address: str) -> None:
    """A literal address inside needs no lookup to be refused, and is taken where the operator allows it."""
    url = f"http://[{address}]:8080/x" if ":" in address else f"http://{address}:8080/x"
    with pytest.raises(InvalidRequest, match="not a public address"):
        check_url(url, allow_private=False)
    check_url(url, allow_private=True)


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "localhost.", "a.localhost"])
def test_names_of_this_machine_are_refused_at_once(name: str) -> None:
    """localhost and what is under it need no lookup either."""
    with pytest.raises(InvalidRequest, match="not a public address"):
        check_url(f"https://{name}/", allow_private=False)
    check_url(f"https://{name}/", allow_private=True)


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/", "http://0x7f000001/", "http://0x7f.1/", "http://0177.0.0.1/", "http://127.1/",
        "http://017700000001/", "http://127.0.0.1./", "http://1.2.3/", "http://[fe80::1%25eth0]/", "http://[::1%1]/",
        "http://user:secret@hooks.example/", "http://user@hooks.example/", "http://127.0.0.1\\@hooks.example/",
        "ftp://hooks.example/", "file:///etc/passwd", "gopher://hooks.example/", "//hooks.example/", "hooks.example", "",
        "http://", "http:///path", "http://?", "http://:80/", "http://hooks.example:0/", "http://hooks.example:65536/",
        "http://hooks.example:port/", "http://a..b/", "http://-a.example/", "http://a%2eb/", "http://exa mple/",
        "http://hooks.example/\r\nX: y", "http://" + "a" * 64 + ".example/", "http://１２７.0.0.1/", "http://[::1/",
    ],
)  # fmt: skip
@pytest.mark.parametrize("allow_private", [False, True])
def test_urls_of_another_form_are_refused(url: str, allow_private: bool) -> None:
    """Addresses in disguise, credentials, other schemes and what is no URL are refused, whatever the operator allows."""
    with pytest.raises(InvalidRequest, match="webhook_url"):
        check_url(url, allow_private)


@pytest.mark.parametrize(
    "url",
    [
        "https://hooks.example", "http://hooks.example:8080/a/b?c=d&e=@f", "https://xn--bcher-kva.example/",
        "https://a_b.example/", "https://hooks.example./", "http://8.8.8.8/", "https://[2606:4700::1111]:8443/",
        "https://1e100.net/", "https://0xyz.example/", "https://hooks.example/#part",
    ],
)  # fmt: skip
def test_urls_of_the_outside_world_are_taken(url: str) -> None:
    """Names and public addresses pass, with port, path and query."""
    check_url(url, allow_private=False)
    assert MusicRequest(prompt="x", webhook_url=url.partition("#")[0]).webhook_url


def test_the_system_resolver_is_what_is_used() -> None:
    """Without another one given, names are looked up as everywhere on this machine."""
    assert set(resolve("localhost", 80)) <= {"127.0.0.1", "::1"}

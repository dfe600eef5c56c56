"""What a caller may see, which hosts are answered, and what the pages load."""

import re
from pathlib import Path
from typing import Any

import pytest

from tests.support.helpers import eventually
from tests.support.running import Service, running, simulated
from tests.support.services import submitted


@pytest.mark.fault("B11")
def test_health_tells_a_key_nothing_of_others(tmp_path: Path) -> None:
    """A key sees only its own job ids and no costs; an operator's key, or the only key, sees everything."""
    models = {"ace-step": simulated(step_s=5, price_per_hour=1.0)}
    with running(tmp_path, models, auth={"operators": ["boss"]}) as service:
        guest = {"Authorization": f"Bearer {service.store.keys.create('guest')}"}
        job = eventually(lambda: submitted(service, guest))
        alone = eventually(lambda: busy_worker(service, guest))
        other = {"Authorization": f"Bearer {service.store.keys.create('other')}"}
        boss = {"Authorization": f"Bearer {service.store.keys.create('boss')}"}
        eventually(lambda: service.client.get("/v1/health", headers=boss).status_code == 200)
        seen = {name: health_of(service, key) for name, key in (("guest", guest), ("other", other), ("boss", boss))}
        service.client.post(f"/v1/jobs/{job}/cancel", headers=guest)

    assert alone["workers"][0]["job"] == job
    assert set(alone["costs"]) == {"ace-step"}
    assert {name: view["workers"][0]["job"] for name, view in seen.items()} == {
        "guest": job,
        "other": None,
        "boss": job,
    }
    assert seen["guest"]["costs"] == seen["other"]["costs"] == {}
    assert set(seen["boss"]["costs"]) == {"ace-step"}
    assert job not in str(seen["other"])


@pytest.mark.fault("B11")
@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Host": "evil.example"}, 421, "wrong_host"),
        ({"Host": "evil.example:8000"}, 421, "wrong_host"),
        ({"Origin": "https://evil.example"}, 403, "cross_site"),
        ({"Origin": "null"}, 403, "cross_site"),
        ({"Host": "studio.example"}, 200, None),
        ({"Host": "localhost:8000", "Origin": "http://localhost:8000"}, 200, None),
        ({"Host": "[::1]:8000"}, 200, None),
    ],
)
def test_without_keys_only_this_machine_is_answered(
    tmp_path: Path, headers: dict[str, str], status: int, code: str | None
) -> None:
    """Requests from a web page of another site are refused by their Host or Origin header."""
    with running(tmp_path, workers=0, api={"allowed_hosts": ["studio.example"]}) as service:
        answer = service.client.get("/v1/jobs", headers=headers)
        probe = service.client.get("/ping", headers=headers)

    assert (answer.status_code, answer.json().get("code")) == (status, code)
    assert probe.status_code == 200


@pytest.mark.fault("B11")
def test_with_a_key_every_name_is_answered(tmp_path: Path) -> None:
    """With a key every Host header is accepted, since no foreign web page has the key."""
    with running(tmp_path, workers=0) as service:
        key = {"Authorization": f"Bearer {service.store.keys.create('studio')}", "Host": "music.example"}
        answer = service.client.get("/v1/jobs", headers={**key, "Origin": "https://app.example"})

    assert answer.status_code == 200


@pytest.mark.fault("C7")
def test_an_event_source_that_has_had_the_last_event_gets_204(tmp_path: Path) -> None:
    """Reconnecting with the last event's id gets 204, which stops an EventSource; without it, the event."""
    with running(tmp_path) as service:
        job = service.ended(service.submit()["id"])["id"]
        path = f"/v1/jobs/{job}/events"
        heard = service.client.get(path)
        last = [line.removeprefix("id: ") for line in heard.text.splitlines() if line.startswith("id: ")][-1]
        again = service.client.get(path, headers={"Last-Event-ID": last})

    assert (heard.status_code, "event: done" in heard.text) == (200, True)
    assert (again.status_code, again.content) == (204, b"")


@pytest.mark.fault("C8")
@pytest.mark.parametrize("page", ["/docs", "/redoc"])
def test_the_pages_of_the_api_need_no_internet(tmp_path: Path, page: str) -> None:
    """The service serves every file that its pages link, and their policy allows no other source."""
    with running(tmp_path, workers=0) as service:
        answer = service.client.get(page)
        links = re.findall(r"""(?:src|href|spec-url)=["']([^"']+)""", answer.text) + re.findall(
            r"url: '([^']+)'", answer.text
        )
        parts = {link: service.client.get(link).status_code for link in links}

    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self'")
    assert any(link.endswith(".js") for link in links)
    assert "/openapi.json" in links
    assert set(parts.values()) == {200}
    assert not [link for link in links if not link.startswith("/")]


def health_of(service: Service, headers: dict[str, str]) -> dict[str, Any]:
    return dict(service.client.get("/v1/health", headers=headers).json())


def busy_worker(service: Service, headers: dict[str, str]) -> dict[str, Any] | None:
    view = health_of(service, headers)
    return view if view.get("workers") and view["workers"][0]["job"] else None

"""The API with keys, without its database, and with many waiting requests."""

import threading
from pathlib import Path

import httpx

from tests.support.databases import private_postgresql
from tests.support.helpers import eventually
from tests.support.running import SONG, Service, running


def test_keys_open_and_part_their_owners_jobs(tmp_path: Path) -> None:
    """Once a key exists, every route but the probes needs one, and only its owner can see a job."""
    with running(tmp_path) as service:
        mine, yours = (service.store.keys.create(name) for name in ("mine", "yours"))
        for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
            refused = service.client.get("/v1/jobs", headers=headers)
            assert (refused.status_code, refused.json()["code"]) == (401, "unauthorized")
            assert refused.headers["www-authenticate"] == "Bearer"
        assert service.client.get("/ping").status_code == service.client.get("/readyz").status_code == 200
        me, you = ({"Authorization": f"Bearer {key}"} for key in (mine, yours))
        job = service.client.post("/v1/jobs", json=SONG, headers=me).json()["id"]
        assert service.client.get(f"/v1/jobs/{job}", headers=me).status_code == 200
        assert service.client.get(f"/v1/jobs/{job}", headers=you).status_code == 404
        assert service.client.get("/v1/jobs", headers=you).json()["jobs"] == []


def test_mode_keys_is_closed_even_without_any_key(tmp_path: Path) -> None:
    """`auth.mode: keys` refuses every caller while no key exists; `none` admits every caller."""
    with running(tmp_path, auth={"mode": "keys"}) as service:
        assert service.client.get("/v1/jobs").status_code == 401
    with running(tmp_path, auth={"mode": "none"}) as service:
        service.store.keys.create("some")
        assert service.client.get("/v1/jobs").status_code == 200


def test_a_database_that_is_away_is_503_and_pings_go_on(tmp_path: Path) -> None:
    """While the database is down the API answers 503 and /ping 200; the worker publishes its song once the database is back."""
    with private_postgresql() as server, running(tmp_path, database_url=server.get_uri()) as service:
        assert service.client.post("/v1/music", json=SONG).status_code == 200
        running_job = service.submit(steps=200)["id"]
        eventually(lambda: service.job(running_job)["state"] == "running")
        server.stop()
        refused = service.client.post("/v1/jobs", json=SONG)
        assert (refused.status_code, refused.json()["code"]) == (503, "store_unavailable")
        assert refused.headers["retry-after"] == "5"
        assert service.client.get("/ping").status_code == 200
        assert service.client.get("/readyz").status_code == 503
        server.start()
        eventually(lambda: service.client.get("/readyz").status_code == 200)
        finished = service.ended(running_job)
        assert (finished["state"], finished["attempt"]) == ("succeeded", 1)
        assert service.client.post("/v1/music", json=SONG).status_code == 200


def test_many_waiting_requests_are_all_answered(service: Service) -> None:
    """Twenty concurrent callers of /v1/music each receive their own song."""
    answers: list[httpx.Response] = []
    threads = [
        threading.Thread(
            target=lambda seed=seed: answers.append(
                httpx.post(f"{service.url}/v1/music", json={**SONG, "duration": 1, "seed": seed}, timeout=60)
            )
        )
        for seed in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [answer.text for answer in answers if answer.status_code != 200] == []
    assert sorted(int(answer.headers["x-seed"]) for answer in answers) == list(range(20))

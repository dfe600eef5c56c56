"""What all families of foreign clients share: the table, jobs that all of them see, keys, names of fields, and browsers."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from serve_app.api import problems
from serve_app.api.compat.families import FAMILIES, served_families
from serve_app.config import ApiArgs
from serve_app.errors import ConfigurationError
from serve_app.music import MusicRequest
from serve_app.music.spellings import FOREIGN_NAMES
from tests.support.helpers import eventually
from tests.support.made_up_family import FAMILY
from tests.support.running import Service, running


@pytest.fixture
def with_made_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Service]:
    """A service that serves a made-up family: its file, and this line in the table."""
    monkeypatch.setitem(FAMILIES, "made-up", FAMILY)
    with running(tmp_path, workers=0) as service:
        yield service


def test_a_new_family_takes_one_file_and_one_line(with_made_up: Service) -> None:
    """A job that a family makes is visible in the native API and in every other family, and can be cancelled there."""
    client = with_made_up.client
    job = client.post("/made-up/compose", json={"style": "piano", "length": 3}).json()["composition"]

    assert with_made_up.job(job)["request"]["duration"] == 3
    assert client.get(f"/v2/ace-step/status/{job}").json()["status"] == "IN_QUEUE"
    assert client.post(f"/v2/ace-step/cancel/{job}").json()["status"] == "CANCELLED"
    assert client.get(f"/made-up/compositions/{job}").json()["phase"] == "over"


def test_a_native_job_is_visible_in_every_family(with_made_up: Service) -> None:
    """A job of POST /v1/jobs has a view in each family."""
    job = with_made_up.submit()["id"]

    assert with_made_up.client.get(f"/made-up/compositions/{job}").json()["phase"] == "pending"
    assert with_made_up.client.get(f"/v2/ace-step/status/{job}").json()["status"] == "IN_QUEUE"


def test_every_error_under_a_familys_paths_has_its_shape(with_made_up: Service) -> None:
    """Wrong fields, unknown routes and bodies that are too large are reported as the family does it, and by its names."""
    client = with_made_up.client
    answers = [
        client.post("/made-up/compose", json={"style": "piano", "length": 900}),
        client.post("/made-up/compose", json={"style": "piano", "lenght": 3}),
        client.post("/made-up/compose", content=b"x" * 2_000_000),
        client.get("/made-up/nothing"),
    ]

    assert [answer.status_code for answer in answers] == [422, 422, 413, 404]
    assert all(set(answer.json()) == {"oops"} for answer in answers)
    assert answers[0].json()["oops"] == "length: must be less than or equal to 600"
    assert client.get("/v1/nothing").json()["code"] == "not_found"


def test_an_unknown_family_is_refused() -> None:
    """The error for a name in api.compat that is no family lists the families."""
    with pytest.raises(ConfigurationError, match=r"there is no family 'runpot'\. Use .*'runpod'"):
        served_families(ApiArgs(compat=["runpot"]))


def test_the_table_of_foreign_names_leads_to_fields() -> None:
    """Every foreign name stands for a field of MusicRequest, and none of them is itself a field."""
    fields = set(MusicRequest.model_fields)

    assert set(FOREIGN_NAMES.values()) <= fields
    assert not set(FOREIGN_NAMES) & fields


@pytest.mark.parametrize("scheme", ["Bearer ", "bearer ", "Key ", "Token ", ""])
def test_a_key_may_stand_alone_in_its_header(tmp_path: Path, scheme: str) -> None:
    """`Authorization` may have the key after `Bearer`, `Key`, `Token` or alone, in native routes too; a wrong one is refused."""
    with running(tmp_path, workers=0) as service:
        key = service.store.keys.create("studio")
        eventually(lambda: service.client.get("/v1/jobs").status_code == 401)

        for path in ("/v1/jobs", "/v2/ace-step/health"):
            assert service.client.get(path, headers={"Authorization": f"{scheme}{key}"}).status_code == 200
            assert service.client.get(path, headers={"Authorization": f"{scheme}{key}x"}).status_code == 401
            assert service.client.get(path, headers={"Authorization": f"Basic {key}"}).status_code == 401
        assert "error" in service.client.get("/v2/ace-step/health").json()


def test_a_key_may_be_in_elevenlabs_header(tmp_path: Path) -> None:
    """`xi-api-key` has the key alone, unless there is an `Authorization`; a wrong one is refused."""
    with running(tmp_path, workers=0) as service:
        key = service.store.keys.create("studio")
        eventually(lambda: service.client.get("/v1/jobs").status_code == 401)

        def status(**headers: str) -> int:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            return service.client.get("/v1/jobs", headers=named).status_code

        assert status(xi_api_key=key) == 200
        assert status(xi_api_key=f"{key}x") == 401
        assert status(xi_api_key=key, authorization="Bearer wrong") == 401


def test_pages_of_configured_sites_may_call(tmp_path: Path) -> None:
    """A browser is told that pages of the sites in api.cors_origins may call, and others not, also in errors."""
    site = "https://app.example.com"
    with running(tmp_path, workers=0, api={"cors_origins": [site]}) as service:
        preflight = service.client.options(
            "/v1/jobs",
            headers={
                "Origin": site,
                "Access-Control-Request-Method": "POST",
                "Access-Control-Request-Headers": "authorization",
            },
        )
        own = service.client.post("/v1/jobs", json={"prompt": ""}, headers={"Origin": site})
        other = service.client.get("/v1/jobs", headers={"Origin": "https://other.example.com"})

        assert preflight.status_code == 200
        assert preflight.headers["access-control-allow-origin"] == site
        assert (own.status_code, own.headers["access-control-allow-origin"]) == (422, site)
        assert (other.status_code, "access-control-allow-origin" in other.headers) == (403, False)


def test_all_sites_means_only_where_keys_are_needed(tmp_path: Path) -> None:
    """With `*` in api.cors_origins, pages of other sites are still refused while no key is needed."""
    with running(tmp_path, workers=0, api={"cors_origins": ["*"]}) as service:
        answer = service.client.get("/v1/jobs", headers={"Origin": "https://other.example.com"})

        assert answer.status_code == 403


def test_the_longest_beginning_decides_an_errors_shape() -> None:
    """Where the paths of one family begin like those of another, an error has the shape of the longer beginning."""
    app = FastAPI()
    made_up = {"/made-up/": FAMILY.error_shape, "/made-up/inner/": lambda problem: (418, {"inner": problem.code})}
    problems.install(app, made_up)

    answer = TestClient(app).get("/made-up/inner/nothing")

    assert (answer.status_code, answer.json()) == (418, {"inner": "not_found"})

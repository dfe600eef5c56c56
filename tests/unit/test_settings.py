"""How a wrong configuration is refused: by the names of settings and variables, and without any value."""

import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as serve_builds

from serve_app.app import build
from serve_app.config.environment import NOT_SETTINGS, PREFIX
from serve_app.errors import ConfigurationError
from serve_app.settings import load_args, read_args
from tests.support.paths import ROOT

SECRET = "TopSecret"  # noqa: S105 - what must not be seen


@pytest.mark.fault("E17")
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SOPHIA_DATABSE_URL", f"postgresql://u:{SECRET}@h/d", "did you mean SOPHIA_DATABASE_URL?"),
        ("SOPHIA_ARTIFACT_URL", f"s3://{SECRET}", "did you mean SOPHIA_ARTIFACTS_URL?"),
        ("SOPHIA_QUEUES__LEASE_S", SECRET, "did you mean SOPHIA_QUEUE__LEASE_S?"),
        ("SOPHIA_QUEUE__LEASE", SECRET, "did you mean SOPHIA_QUEUE__LEASE_S?"),
        ("SOPHIA_QUEUE_LEASE_S", SECRET, "did you mean SOPHIA_QUEUE__LEASE_S?"),
        ("SOPHIA_DATABASE_URL__HOST", SECRET, "did you mean SOPHIA_DATABASE_URL?"),
        ("SOPHIA_MODELS__M__SORCE", SECRET, "did you mean SOPHIA_MODELS__M__SOURCE?"),
        ("SOPHIA_MODELS__M__SCALING__MAX_WORKER", SECRET, "did you mean SOPHIA_MODELS__M__SCALING__MAX_WORKERS?"),
        ("SOPHIA_ZEBRA", SECRET, "docs/SETTINGS.md lists all settings"),
        ("SOPHIA_GRAFANA_SERVICE_HOST", SECRET, "is not a setting"),
    ],
)
def test_a_misspelt_variable_is_refused_with_the_nearest_one(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    """The error names the variable and the setting that was probably meant, and not its value."""
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError, match="is not a setting") as caught:
        read_args({})

    assert caught.value.message.startswith(f"{name} is not a setting")
    assert says in caught.value.message
    assert SECRET not in caught.value.message


@pytest.mark.fault("E17")
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("SOPHIA_QUEUE", "high", "SOPHIA_QUEUE is a section: set SOPHIA_QUEUE__LEASE_S and so on"),
        ("SOPHIA_QUEUE", "[]", "SOPHIA_QUEUE is a section"),
        ("SOPHIA_MODELS", "high", "SOPHIA_MODELS must be an object in JSON"),
        ("SOPHIA_MODELS__M", "high", "SOPHIA_MODELS__M is a section: set SOPHIA_MODELS__M__SOURCE"),
        ("SOPHIA_WEBHOOKS__RETRIES_S", "high", "SOPHIA_WEBHOOKS__RETRIES_S must be a list in JSON"),
        ("SOPHIA_API__REPLICAS", "high", "SOPHIA_API__REPLICAS: api.replicas: must be an integer"),
        ("SOPHIA_DATA_DIR", "high", "SOPHIA_DATA_DIR: data_dir: must be an absolute path"),
        ("SOPHIA_DEFAULT_MODEL", "high", "default_model is not among the models ['ace-step']"),
    ],
)
def test_a_variable_of_the_wrong_shape_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    """An unreadable section, list or number is reported by the variable's name, without a traceback or its value."""
    monkeypatch.setenv(name, value)

    with pytest.raises(ConfigurationError) as caught:
        read_args({})

    assert says in caught.value.message
    assert "high" not in caught.value.message


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"modls": 1}, "args: modls: is not a setting; did you mean 'models'?"),
        ({"models": {"m": {"sourc": SECRET}}}, "args: models.m.sourc: is not a setting; did you mean 'source'?"),
        ({"auth": {"zebra": SECRET}}, "args: auth.zebra: is not a setting; the settings here are mode, operators"),
        ({"models": {}}, "args: models: must not be empty"),
        (
            {"models": {"m": {"source": "embeded"}}},
            "args: models.m.source: must be 'auto', 'embedded', 'embedded-base', 'random', 'simulated', a Hugging Face repository "
            "id such as 'ACE-Step/Ace-Step1.5' (owner/name), an object store such as 's3://bucket/prefix', or an absolute path; "
            "did you mean 'embedded'?",
        ),
        (
            {"models": {"m": {"parts_from": SECRET}}},
            "args: models.m.parts_from: must be a Hugging Face repository id such as",
        ),
        ({"models": {"m": None}}, "args: models.m: must be an object"),
        (
            {"models": {"m": {"cpu_threads": 0}}},
            "models.m.cpu_threads: must be 'auto' or must be greater than or equal to 1",
        ),
        ({"webhooks": {"retries_s": [5, SECRET]}}, "args: webhooks.retries_s.1: must be a number"),
        (
            {"api": {"cors_origins": [SECRET]}},
            "args: api.cors_origins.0: must be a site such as https://app.example.com",
        ),
        ({"cluster_name": f"{SECRET}!"}, "args: cluster_name: must be a name of letters from A to Z, digits, "),
        (
            {"webhook_secret": SECRET},
            "args: webhook_secret: must be whsec_ followed by 24 to 64 random bytes in base64",
        ),
        (
            {"models": {"m": {"adapters": {"a b": {"source": "x"}}}}},
            "args: models.m.adapters.a b: must be a name of letters from A to Z, digits, '.', '_' and '-', at most 64, and begin",
        ),
    ],
)
def test_a_wrong_setting_says_what_is_allowed(given: dict[str, Any], says: str) -> None:
    """The error names the setting and the rule in plain words, and not its value."""
    with pytest.raises(ConfigurationError) as caught:
        read_args(given)

    assert says in caught.value.message
    assert SECRET not in caught.value.message


@pytest.mark.fault("E17")
def test_what_kubernetes_sets_for_its_services_is_no_misspelling(monkeypatch: pytest.MonkeyPatch) -> None:
    """In Kubernetes only, variables that a Service named sophia-… sets are not reported as misspelt."""
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    for name, value in {
        "SOPHIA_SERVICE_HOST": "10.0.0.9",
        "SOPHIA_PORT": "tcp://10.0.0.9:80",
        "SOPHIA_HEAD_SVC_SERVICE_HOST": "10.0.0.9",
        "SOPHIA_HEAD_SVC_SERVICE_PORT": "8000",
        "SOPHIA_HEAD_SVC_SERVICE_PORT_HTTP_SERVE": "8000",
        "SOPHIA_HEAD_SVC_PORT": "tcp://10.0.0.9:8000",
        "SOPHIA_HEAD_SVC_PORT_8000_TCP": "tcp://10.0.0.9:8000",
        "SOPHIA_HEAD_SVC_PORT_8000_TCP_ADDR": "10.0.0.9",
    }.items():
        monkeypatch.setenv(name, value)

    read_args({})

    monkeypatch.setenv("SOPHIA_DATABSE_URL", "x")
    with pytest.raises(ConfigurationError, match=r"^SOPHIA_DATABSE_URL is not a setting: did you mean [A-Z_]+[?]$"):
        read_args({})


def test_variables_of_our_own_files_are_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every SOPHIA_ name in the cluster's files is a setting, or is listed with the program that reads it."""
    for name in NOT_SETTINGS.keys() - {"SOPHIA_SECRETS_DIR"}:
        monkeypatch.setenv(name, "1")
    for line in (ROOT / "cluster/onprem/sophia.env.example").read_text().splitlines():
        name, _, value = line.lstrip("# ").partition("=")
        if name.startswith(PREFIX) and name.isupper():
            monkeypatch.setenv(name, value.strip('"'))
    monkeypatch.setenv("sophia_api__replicas", "3")

    assert read_args({}).api.replicas == 3


@pytest.mark.fault("E17")
def test_a_misspelt_secret_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A misspelt secret file and a missing secrets folder are reported like misspelt variables."""
    monkeypatch.setenv("SOPHIA_SECRETS_DIR", str(tmp_path))
    (tmp_path / "SOPHIA_DATABASE_URL").write_text("sqlite:///x")
    (tmp_path / "tls.crt").write_text("another program's")
    read_args({})
    (tmp_path / "SOPHIA_WEBHOK_SECRET").write_text(SECRET)
    (tmp_path / "SOPHIA_API__REPLICAS").write_text("3")

    with pytest.raises(ConfigurationError) as caught:
        read_args({})

    assert "SOPHIA_WEBHOK_SECRET in SOPHIA_SECRETS_DIR is not a setting: did you mean SOPHIA_WEBHOOK_SECRET?" in str(
        caught.value
    )
    assert "SOPHIA_API__REPLICAS in SOPHIA_SECRETS_DIR is ignored" in str(caught.value)
    assert SECRET not in str(caught.value)
    monkeypatch.setenv("SOPHIA_SECRETS_DIR", str(tmp_path / "none"))
    with pytest.raises(
        ConfigurationError, match="SOPHIA_SECRETS_DIR must name a folder that can be read: No such file"
    ):
        read_args({})


@pytest.mark.fault("E31")
@pytest.mark.parametrize(
    ("args", "names"),
    [
        ({"database_ur1": f"postgresql://u:{SECRET}@h/d"}, "database_ur1"),
        ({"data_dir": f"postgresql://u:{SECRET}@h/d"}, "data_dir"),
        ({"default_model": SECRET}, "default_model"),
        ({"webhook_secret": SECRET}, "webhook_secret"),
        ({"api": {"replicas": SECRET}}, "api.replicas"),
        ({"models": {"m": {"variant": SECRET}}}, "models.m.variant"),
        ({"models": {"m": {"label_selector": {"zone": f"({SECRET})"}}}}, "label_selector.zone"),
        ({"models": {"m": {"label_selector": {"zone": [f"({SECRET})"]}}}}, "label_selector.zone"),
    ],
)
def test_what_serve_shows_of_a_wrong_setting_holds_no_value(args: Mapping[str, Any], names: str) -> None:
    """The error that Serve writes into its status and logs names the setting and no value."""
    with pytest.raises(Exception, match=names) as caught:
        serve_builds(build, dict(args))

    error: BaseException | None = caught.value
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    while error is not None:
        assert SECRET not in f"{error} {error!r} {error.args} {vars(error)}"
        error = error.__cause__ or error.__context__


@pytest.mark.fault("E31")
@pytest.mark.parametrize(
    "text",
    [
        f"applications:\n- args: {{database_url: @{SECRET}\n",
        f"applications:\n- import_path: other:app\n  args: {{database_url: {SECRET}}}\n",
        f"- {SECRET}\n",
        f"!{SECRET} x\n",
    ],
)
def test_a_broken_file_is_refused_without_its_text(tmp_path: Path, text: str) -> None:
    """The error names the line and does not show its text."""
    file = tmp_path / "serve.yaml"
    file.write_text(text)

    with pytest.raises(ConfigurationError, match="is not a Serve config with a Sophia application") as caught:
        load_args(file)

    assert SECRET not in "".join(traceback.format_exception(caught.value))
    assert caught.value.__context__ is None


def test_a_file_that_holds_what_serve_takes_is_read(tmp_path: Path) -> None:
    """An application without `args:` gets the defaults."""
    file = tmp_path / "serve.yaml"
    file.write_text(yaml.safe_dump({"applications": [{"import_path": "serve_app.app:build", "args": None}]}))

    assert load_args(file).default_model == "ace-step"


def test_a_config_file_that_is_not_there_is_named_once(tmp_path: Path) -> None:
    """With the reason, and without Python's words for it."""
    missing = tmp_path / "nothing.yaml"

    with pytest.raises(ConfigurationError) as caught:
        load_args(missing)

    assert caught.value.message == f"{missing} cannot be read: No such file or directory"

"""The configuration: strict, overridable, and described in docs/SETTINGS.md."""

from pathlib import Path

import pytest
import yaml
from pydantic import ValidationError
from ray._private.label_utils import validate_label_selector
from ray.serve.schema import ServeDeploySchema

from serve_app.api.listen_policy import keys_are_needed
from serve_app.config import AppArgs, ModelArgs
from serve_app.errors import ConfigurationError
from serve_app.ray_adapters.label_selectors import Selector
from serve_app.settings import load_args
from tests.support import settings_table
from tests.support.paths import ROOT


def test_an_environment_variable_beats_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """SOPHIA_… variables override the YAML; nested settings use two underscores."""
    monkeypatch.setenv("SOPHIA_API__REPLICAS", "3")
    monkeypatch.setenv("SOPHIA_DATABASE_URL", "postgresql://u:hunter2@h/d")
    args = AppArgs.model_validate({"api": {"replicas": 2, "num_cpus": 0.2}})
    assert (args.api.replicas, args.api.num_cpus) == (3, 0.2)
    assert args.resolved_database_url == "postgresql://u:hunter2@h/d"
    assert "hunter2" not in repr(args)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"modles": {}}, "modles"),
        ({"models": {}}, "models"),
        ({"models": {"a": {"source": "embedded", "gpu": 1}}}, "gpu"),
        ({"models": {"a": {"device": "tpu"}}}, "device"),
        ({"default_model": "b"}, "default_model is not among"),
        ({"data_dir": "relative"}, "absolute"),
        ({"queue": {"lease_s": 0}}, "lease_s"),
        (
            {"models": {"a": {"label_selector": {"zone": "in(a"}}}},
            r"models\.a\.label_selector\.zone\n.*a list of values",
        ),
        ({"models": {"a": {"label_selector": {"zone": "(a)"}}}}, r"must be a label value"),
        ({"models": {"a": {"label_selector": {"zone": ["a", "!b"]}}}}, r"label_selector\.zone"),
        ({"models": {"a": {"label_selector": {"zone": []}}}}, r"label_selector\.zone"),
        ({"models": {"a": {"label_selector": {"zone": 7}}}}, r"label_selector\.zone"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(settings: dict[str, object], says: str) -> None:
    """A misspelt setting and a value out of bounds are refused by name."""
    with pytest.raises(ValidationError, match=says):
        AppArgs.model_validate(settings)


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("A", "A"),
        ("!A", "!A"),
        ("in(A, B)", "in(A, B)"),
        ("!in(A,B)", "!in(A,B)"),
        (["GeForce-RTX-4090", "GeForce-RTX-5090"], "in(GeForce-RTX-4090,GeForce-RTX-5090)"),
    ],
)
def test_a_label_selector_is_a_string_or_a_list(given: str | list[str], meant: str) -> None:
    """Every selector that the configuration accepts is accepted by Ray, and reading it again changes nothing."""
    model = ModelArgs.model_validate({"label_selector": {"ray.io/accelerator-type": given}})

    assert model.label_selector == {"ray.io/accelerator-type": meant}
    assert validate_label_selector(model.label_selector) is None
    assert ModelArgs.model_validate(model.model_dump()) == model


@pytest.mark.parametrize(
    ("text", "fitting"),
    [("A", ["A"]), ("!A", ["B", "C", None]), ("in(A, B)", ["A", "B"]), ("!in(A,B)", ["C", None])],
)
def test_a_selector_fits_the_nodes_that_ray_would_take(text: str, fitting: list[str | None]) -> None:
    """A node without the label matches only a negated selector."""
    assert [label for label in ("A", "B", "C", None) if Selector.parse(text).matches(label)] == fitting


@pytest.mark.parametrize("file", sorted(ROOT.glob("[!.]*.yaml")), ids=lambda file: file.name)
def test_our_serve_configs_hold_nothing_that_serve_would_ignore(file: Path) -> None:
    """Our Serve configs contain no key that Serve or Sophia does not know."""
    document = yaml.safe_load(file.read_text())
    ServeDeploySchema.model_validate(document)
    assert _unknown(document, ServeDeploySchema) == []
    for app in document["applications"]:
        AppArgs.model_validate(app["args"])


def _unknown(value: object, model: object, path: str = "") -> list[str]:
    """Keys of `value` that the pydantic `model` has no field for; `args` are the application's own."""
    if not isinstance(value, dict) or not hasattr(model, "model_fields"):
        return []
    found = [f"{path}.{key}" for key in value if key not in model.model_fields]
    for key, field in model.model_fields.items():
        inner = _models(field.annotation)
        for item in value[key] if isinstance(value.get(key), list) else [value.get(key)]:
            found += [name for kind in inner[:1] for name in _unknown(item, kind, f"{path}.{key}")]
    return found


def _models(annotation: object) -> list[object]:
    if hasattr(annotation, "model_fields"):
        return [annotation]
    return [model for part in getattr(annotation, "__args__", ()) for model in _models(part)]


def test_the_settings_page_is_current() -> None:
    """docs/SETTINGS.md is what `python -m tests.support.settings_table` writes."""
    assert settings_table.FILE.read_text() == settings_table.page()


def test_the_command_line_reads_the_same_file(tmp_path: Path) -> None:
    """`sophia` reads the application's arguments from the Serve config, and reports if there are none."""
    file = tmp_path / "serve.yaml"
    app = {"name": "x", "import_path": "serve_app.app:build", "args": {"data_dir": str(tmp_path)}}
    file.write_text(yaml.safe_dump({"applications": [app]}))
    assert load_args(file).data_dir == tmp_path
    file.write_text(yaml.safe_dump({"applications": [{**app, "args": {"data_dri": "x"}}]}))
    with pytest.raises(ConfigurationError, match="data_dri"):
        load_args(file)
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        load_args(tmp_path / "missing.yaml")


@pytest.mark.fault("B1", "B2")
@pytest.mark.parametrize(
    ("mode", "host", "needed"),
    [
        ("auto", "127.0.0.1", False),
        ("auto", "localhost", False),
        ("auto", "::1", False),
        ("auto", "0.0.0.0", True),  # noqa: S104 - this is what must not be open
        ("auto", "192.0.2.7", True),
        ("auto", "music.example", True),
        ("keys", "127.0.0.1", True),
        ("none", "0.0.0.0", False),  # noqa: S104 - said in words
    ],
)
def test_beyond_loopback_every_caller_needs_a_key(tmp_path: Path, mode: str, host: str, needed: bool) -> None:
    """The configuration and the listening address alone decide who may call; the default is closed."""
    args = AppArgs.model_validate({"data_dir": tmp_path, "auth": {"mode": mode}})

    assert keys_are_needed(args, host) is needed

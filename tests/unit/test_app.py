"""How the Serve application is assembled."""

from pathlib import Path

import pytest

from serve_app.app import _worker_deployment, build
from serve_app.config import AppArgs
from serve_app.errors import ConfigurationError


def test_a_worker_has_a_gpu_of_its_own_unless_configured_to_share(tmp_path: Path) -> None:
    """Each model is one deployment with a whole GPU of its card, the share that its settings give, or none on the CPU."""
    models = {
        "pinned": {"device": "cuda", "label_selector": {"ray.io/accelerator-type": ["L4", "L40S"]}},
        "sharing": {"device": "cuda", "num_gpus": 0.5, "num_cpus": 2},
        "slow": {"device": "cpu"},
    }
    args = AppArgs.model_validate({"data_dir": tmp_path, "models": models})
    options = {name: _worker_deployment(name, args, "d").ray_actor_options for name in models}
    assert options["pinned"] == {
        "num_cpus": 0.5,
        "num_gpus": 1,
        "label_selector": {"ray.io/accelerator-type": "in(L4,L40S)"},
    }
    assert options["sharing"] == {"num_cpus": 2, "num_gpus": 0.5}
    assert options["slow"] == {"num_cpus": 0.5}


def test_the_policys_arguments_hold_no_secret(tmp_path: Path) -> None:
    """The policy's arguments, which Serve logs and shows, do not contain the database's address and password."""
    url = "postgresql://sophia:hunter2@db/sophia"
    args = AppArgs.model_validate({"data_dir": tmp_path, "database_url": url, "models": {"m": {"device": "cpu"}}})
    shown = repr(_worker_deployment("m", args, "d")._deployment_config.autoscaling_config.policy.policy_kwargs)
    assert "database-url-d" in shown
    assert "hunter2" not in shown


def test_an_unknown_family_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """A wrong name in api.compat ends `serve run`, instead of every start of an API process."""
    args = {"data_dir": str(tmp_path), "models": {"m": {"device": "cpu"}}, "api": {"compat": ["runpods"]}}

    with pytest.raises(ConfigurationError, match=r"api.compat: there is no family 'runpods'. Use .*'runpod'"):
        build(args)

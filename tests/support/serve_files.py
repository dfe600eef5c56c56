"""Configuration files for Ray Serve, as an operator writes them."""

from pathlib import Path

import yaml


def minimal_serve_file(folder: Path) -> Path:
    """Writes serve.yaml with one model, `m`, whose settings are all defaults."""
    file = folder / "serve.yaml"
    args = {"data_dir": str(folder), "models": {"m": {}}}
    file.write_text(yaml.safe_dump({"applications": [{"import_path": "serve_app.app:build", "args": args}]}))
    return file

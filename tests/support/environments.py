"""Python environments that lack a package, made of links to this one's packages."""

import os
import sys
from pathlib import Path

import numpy as np

from tests.support.paths import ROOT


def without(package: str, folder: Path) -> Path:
    """A folder with every installed package but one, for a `bare` interpreter."""
    folder.mkdir()
    for entry in Path(np.__file__).parent.parent.iterdir():
        if entry.name != package and not entry.name.lower().startswith((f"{package}-", f"{package}.")):
            (folder / entry.name).symlink_to(entry)
    return folder


def bare() -> list[str]:
    """This Python without any packages: `-S` leaves out site-packages, and a virtual environment has no effect."""
    return [getattr(sys, "_base_executable", sys.executable), "-S"]


def finding(*places: Path) -> dict[str, str]:
    """An environment in which Python looks for packages in `places`, then in this project."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(str(place) for place in (*places, ROOT))}


def distribution(folder: Path, name: str, version: str) -> None:
    """The metadata of an installed distribution."""
    info = folder / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

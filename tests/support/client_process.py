"""Client packages of other services, each in a process of its own, which is told what to call."""

import json
import os
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, Final

from tests.support.paths import ROOT

PYTHON: Final = ROOT / ".venv-clients" / "bin" / "python"
JAVASCRIPT: Final = ROOT / "tests" / "javascript"
ARE_HERE: Final = PYTHON.exists() and (JAVASCRIPT / "node_modules" / "installed").exists()
"""Whether `make clients` has installed the packages."""


class ClientProcess:
    """A program that reads a JSON list from each line of its input, and prints what the call returned or raised."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def tell(self, *call: Any) -> dict[str, Any]:
        """`{"result": …}` or, after an exception, `{"error": class, …}`."""
        into: IO[str] | None = self._process.stdin
        out_of: IO[str] | None = self._process.stdout
        assert into is not None
        assert out_of is not None
        into.write(json.dumps(call) + "\n")
        into.flush()
        return dict(json.loads(out_of.readline()))


@contextmanager
def client_process(script: Path, environment: Mapping[str, str]) -> Iterator[ClientProcess]:
    """Run a script in Python, beside the Python packages, or in Node.js beside those in JavaScript, with these variables."""
    variables = {**os.environ, "NO_PROXY": "*", "no_proxy": "*", **environment}
    # -P: beside the script lie modules with names of the standard library.
    command: Sequence[str] = ["node", str(script)] if script.suffix == ".mjs" else [str(PYTHON), "-P", str(script)]
    with subprocess.Popen(
        command, env=variables, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=script.parent
    ) as process:
        yield ClientProcess(process)


def run_example(
    heading: str, language: str, folder: Path, url: str, key: str, environment: Mapping[str, str] = MappingProxyType({})
) -> str:
    """Run the example that docs/CLIENTS.md has under a heading, in a folder and with these variables. Returns what it prints.

    Only the address and the key in it are replaced: they belong to the service that the test has started.
    """
    guide = (ROOT / "docs" / "CLIENTS.md").read_text()
    section = re.split(r"^### ", guide.partition(f"### {heading}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    [example] = re.findall(rf"^```{language}\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    host = url.partition("://")[2]
    code = (
        example.replace("http://localhost:8000", url)
        .replace("sophia.example.com", host)
        .replace('"YOUR_KEY"', json.dumps(key))
    )
    script = folder / ("example.mjs" if language == "javascript" else "example.py")
    script.write_text(code)
    if language == "javascript":
        (folder / "node_modules").symlink_to(JAVASCRIPT / "node_modules")
    program = "node" if language == "javascript" else str(PYTHON)
    variables = {**os.environ, "NO_PROXY": "*", "no_proxy": "*", **environment}
    ran = subprocess.run(
        [program, script.name], cwd=folder, env=variables, capture_output=True, text=True, check=False, timeout=120
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout

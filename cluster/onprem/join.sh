#!/bin/sh
# Adds a machine to the cluster. Run it as root on a machine of the cluster:  ./join.sh root@NEW_MACHINE NEW_IP
# It copies code, settings and the Ray token over ssh, sets the new machine's address, and starts its units.
# SOPHIA_PYTHON names the new machine's interpreter (default: python3): Ray needs exactly the same version on all machines.
set -eu
machine=${1:?the new machine, as ssh knows it} address=${2:?the new machine's address in the cluster\'s network}
here=$(dirname "$0")
python=${SOPHIA_PYTHON:-python3}
asked='import platform; print(platform.python_version())'
ours=$("$here/../../.venv/bin/python" -c "$asked")
theirs=$(ssh "$machine" "$python -c '$asked'") || theirs="no $python"
if [ "$ours" != "$theirs" ]; then
    echo "$machine has Python $theirs and this cluster $ours: Ray joins only machines of the very same version." >&2
    echo "Install Python $ours there and name it: SOPHIA_PYTHON=/path/to/python3 $0 $machine $address" >&2
    exit 1
fi
ssh "$machine" 'id sophia >/dev/null 2>&1 || useradd --system --home-dir /var/lib/sophia --create-home sophia
    install -d -m 755 /opt/sophia && install -d -m 750 -g sophia /etc/sophia'
rsync -a --delete --exclude .git --exclude .venv "$here/../../" "$machine:/opt/sophia/"
rsync -a /etc/sophia/ "$machine:/etc/sophia/"
# The database's password, which the address in sophia.env leaves out.
if [ -e /var/lib/sophia/.pgpass ]; then
    rsync -a --chmod=600 --chown=sophia:sophia /var/lib/sophia/.pgpass "$machine:/var/lib/sophia/.pgpass"
fi
ssh "$machine" "sed -i 's/^SOPHIA_NODE_IP=.*/SOPHIA_NODE_IP=$address/' /etc/sophia/sophia.env
    make -C /opt/sophia PYTHON=$python .venv/installed
    cp /opt/sophia/cluster/onprem/*.service /opt/sophia/cluster/onprem/*.timer /etc/systemd/system/
    systemctl daemon-reload
    systemctl enable --now sophia-firewall.service
    systemctl reload sophia-firewall.service
    systemctl enable --now sophia-weights.timer sophia-ray-worker.service"

#!/bin/sh
# Lets the songs in hand end before this node goes: the preStop hook of the Kubernetes pods, ExecStop of the systemd units.
# A drained node gets no new work; its workers stop claiming, end their job, publish it, and leave. Then the node may die.
set -eu
seconds=${SOPHIA_DRAIN_S:-3720} # as long as Serve gives a worker; with more time left than that it would first wait for a successor
export RAY_ADDRESS="${RAY_ADDRESS:-${SOPHIA_HEAD_IP:-127.0.0.1}:6379}"
here="--ns $$ --nslist net" # should several nodes share a machine: only the processes of this one
# The raylet knows which node this is. (`ray drain-node` without an id asks Ray for it, which may start or find another node.)
node=$(pgrep $here -af raylet/raylet | sed -n 's/.*--node[-_]id=\([0-9a-f]*\).*/\1/p' | head -n1)
[ -n "$node" ] || exit 0
ray drain-node --address="$RAY_ADDRESS" --node-id="$node" --reason=DRAIN_NODE_REASON_PREEMPTION \
    --reason-message="this node is being stopped" --deadline-remaining-seconds="$seconds" || exit 0 # no cluster, no jobs
deadline=$(($(date +%s) + seconds))
while pgrep $here -f '^ray::ServeReplica:' >/dev/null && [ "$(date +%s)" -lt "$deadline" ]; do
    sleep 1
done

#!/bin/sh
# Lets the running songs finish before this node stops: the preStop hook of the Kubernetes pods, and ExecStop of the systemd units.
# A draining node gets no new work. Its workers stop claiming, finish and publish their jobs, and end. Then the node can stop.
set -eu
seconds=${SOPHIA_DRAIN_S:-3720} # the time that Serve gives a worker; with more time, Serve would first wait for a replacement
export RAY_ADDRESS="${RAY_ADDRESS:-${SOPHIA_HEAD_IP:-127.0.0.1}:6379}"
here="--ns $$ --nslist net" # if several nodes share a machine, only the processes of this one
# The raylet's command line has the node's id. Without an id, `ray drain-node` asks Ray for it, which may start or find another node.
node=$(pgrep $here -af raylet/raylet | sed -n 's/.*--node[-_]id=\([0-9a-f]*\).*/\1/p' | head -n1)
[ -n "$node" ] || exit 0
ray drain-node --address="$RAY_ADDRESS" --node-id="$node" --reason=DRAIN_NODE_REASON_PREEMPTION \
    --reason-message="this node is being stopped" --deadline-remaining-seconds="$seconds" || exit 0 # no cluster, no jobs
deadline=$(($(date +%s) + seconds))
while pgrep $here -f '^ray::ServeReplica:' >/dev/null && [ "$(date +%s)" -lt "$deadline" ]; do
    sleep 1
done

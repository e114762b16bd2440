#!/bin/sh
# The image's health check: where this container runs a Ray node, the node's agent must vouch for it; else raydet must start.
# The agent's port stands in the command that the raylet was given for it.
set -eu

ports=$(cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' \
    | sed -n 's/^--dashboard_agent_command=.* --listen-port=\([1-9][0-9]*\) .*/\1/p' | sort -u)
if [ -z "$ports" ]; then
    exec raydet recipes > /dev/null
fi
for port in $ports; do
    wget --quiet --tries=1 --timeout=5 --output-document=/dev/null "http://127.0.0.1:$port/api/local_raylet_healthz"
done

#!/bin/sh
# The image's health check. Where `ray start` has put a Ray node into this container, its agent must vouch for it; else
# raydet must start. A Ray that a raydet command starts for itself listens on port 0, any that is free: that
# command watches it.
set -eu

ports=$(cat /proc/[0-9]*/cmdline 2>/dev/null | tr '\0' '\n' | sed -n 's/^--listen-port=\([1-9][0-9]*\)$/\1/p' | sort -u)
if [ -z "$ports" ]; then
    exec raydet recipes > /dev/null
fi
for port in $ports; do
    wget --quiet --tries=1 --timeout=5 --output-document=/dev/null "http://127.0.0.1:$port/api/local_raylet_healthz"
done

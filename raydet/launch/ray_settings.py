"""Environment variables that Ray, Ray Train and Ray Tune read at import: import this module before them.

Variables that the user has set stay.
"""

import os
import socket
import sys

_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # A worker's report waits for the controller's next poll: 2 s by default, long beside a short epoch.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Tune's handler ends a study as if it had finished; ours is KeyboardInterrupt.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
_LOOPBACK = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")][:1]
_LOCAL_RAY_SETTINGS = {
    **{f"{library}_SOCKET_IFNAME": name for library in ("GLOO", "NCCL") for name in _LOOPBACK},
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on the loopback only
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # a laptop is not pre-empted, and each run would start an actor
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # With Ray's default of 15, trials hardly run beside other programs on a shared machine.
    "RAY_worker_niceness": "0",
}
_ray = sys.modules.get("ray")
_is_worker = _ray is not None and _ray.is_initialized()
IS_LOCAL = "RAY_ADDRESS" not in os.environ and not _is_worker
"""This process has to start its own Ray, if it needs one."""
for _name, _value in (_RAY_SETTINGS | (_LOCAL_RAY_SETTINGS if IS_LOCAL else {})).items():
    os.environ.setdefault(_name, _value)

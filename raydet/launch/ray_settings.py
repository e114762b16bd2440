"""What Ray, Ray Train and Ray Tune read from the environment when they are imported: import this module before them.

What the user has set stays.
"""

import os
import socket
import sys


def _is_worker() -> bool:
    """In a process that Ray started, which has what its cluster was started with: nothing is known of that here."""
    ray = sys.modules.get("ray")
    return ray is not None and ray.is_initialized()


_RAY_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "RAY_SCHEDULER_EVENTS": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # A worker's report waits for the controller's next poll: 2 s by default, which a short epoch feels.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Tune's handler ends a study as if it had finished; ours is KeyboardInterrupt.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
}
_LOOPBACK = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")][:1]
_LOCAL_RAY_SETTINGS = {
    **{f"{library}_SOCKET_IFNAME": name for library in ("GLOO", "NCCL") for name in _LOOPBACK},
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # listen on the loopback only
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody pre-empts a laptop, and each run would start an actor for it
    "RAY_TRAIN_METRICS_ENABLED": "0",
    # Ray's own choice is 15, with which trials hardly run beside the other programs of a shared machine.
    "RAY_worker_niceness": "0",
}
IS_LOCAL = "RAY_ADDRESS" not in os.environ and not _is_worker()
"""This process has to start a Ray of its own, if it wants one."""
for _name, _value in (_RAY_SETTINGS | (_LOCAL_RAY_SETTINGS if IS_LOCAL else {})).items():
    os.environ.setdefault(_name, _value)

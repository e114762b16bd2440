"""All undocumented parts of Ray that raydet uses: private symbols, generated messages, names.

Any release of Ray may remove them; tests/unit/launch/test_ray_private.py tests them one by one and says which raydet
feature needs each. pyproject.toml keeps Ray below the first untested release.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import raydet.launch.ray_settings  # noqa: F401  # isort: skip  -- before ray, which reads the environment at import

import grpc
import ray
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._private.grpc_utils import init_grpc_channel
from ray._private.ray_constants import GLOBAL_GRPC_OPTIONS
from ray._private.services import canonicalize_bootstrap_address, find_node_ids
from ray._private.state import available_resources_per_node
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.core.generated.autoscaler_pb2 import GetClusterStatusReply, NodeStatus
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest, GetAllNodeInfoRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub

__all__ = [
    "CheckAliveRequest",
    "GetAllNodeInfoRequest",
    "GetClusterStatusReply",
    "NodeInfoGcsServiceStub",
    "NodeStatus",
    "available_resources_per_node",
    "canonicalize_bootstrap_address",
    "find_node_ids",
    "is_token_auth_enabled",
]

HEAD_RESOURCE = "node:__internal_head__"
"""The resource that only a cluster's head has."""
TRIAL_TITLE = "ray::ImplicitFunc"
"""Prefix of the process title of a Tune trial."""


def head_channel(address: str, *, has_token: bool = True) -> grpc.Channel:
    """A connection to the head at HOST:PORT, with this process's token and certificate, or with neither."""
    if has_token:
        return init_grpc_channel(address, options=GLOBAL_GRPC_OPTIONS)
    return grpc.insecure_channel(address, options=GLOBAL_GRPC_OPTIONS)


def has_token() -> bool:
    """Whether this process finds a token, wherever Ray looks for one.

    Raises:
        ray.exceptions.AuthenticationError: RAY_AUTH_TOKEN_PATH names a file that cannot be read.
    """
    return bool(AuthenticationTokenLoader.instance().has_token(ignore_auth_mode=True))


def forget_token() -> None:
    """Have Ray read mode and token from the environment again.

    The mode comes first: otherwise a thread of Ray that is still closing looks for the deleted token and aborts.
    """
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def cluster_status(timeout_s: int) -> GetClusterStatusReply:
    """Nodes, demands and what the autoscaler of the connected cluster does about them.

    Raises:
        ray.exceptions.RayError: the head does not answer.
    """
    reply = ray._private.worker.global_worker.gcs_client.get_cluster_status(timeout_s=timeout_s)
    return GetClusterStatusReply.FromString(reply)


def keep_keys_out_of_trials() -> None:
    """Have Tune leave AWS keys in the driver.

    Tune would copy them into the runtime environment of every trial, which Ray logs and shows in its dashboard. Nodes
    have keys of their own: a role, or the environment that Ray was started in.
    """
    from ray.tune.execution import class_cache

    names = class_cache.ENV_VARS_TO_PROPAGATE
    names.difference_update({name for name in names if name.startswith("AWS_")})


@contextmanager
def starting_workers_with(script: Path) -> Iterator[None]:
    """Have a Ray that is started within the block set its workers up with a script instead of its own."""
    from ray._private import ray_constants

    own = ray_constants.SETUP_WORKER_FILENAME
    # Ray joins it to a directory of its own, of which an absolute path leaves nothing.
    ray_constants.SETUP_WORKER_FILENAME = str(script)
    try:
        yield
    finally:
        ray_constants.SETUP_WORKER_FILENAME = own


def torch_backend() -> type[Any]:
    """The backend class that sets up the process group of a run's workers."""
    from ray.train.torch.config import _TorchBackend

    return _TorchBackend


def lean_trainer(*, is_local: bool) -> type[Any]:
    """`TorchTrainer` without what delays the start and the end of each run to no use.

    It starts no manager of Ray Data's sets. On a local Ray the cleaner of placement groups, which frees the resources
    of a controller that was killed, looks at it five times a second, not once: the end of a run waits for that.
    """
    from ray.train.torch import TorchTrainer
    from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
    from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

    replaced = (DatasetsCallback, PlacementGroupCleanerCallback) if is_local else (DatasetsCallback,)

    class LeanTrainer(TorchTrainer):
        def _create_default_callbacks(self) -> list[Any]:
            callbacks = [
                each for each in super()._create_default_callbacks() if not isinstance(each, replaced)
            ]
            if is_local:
                callbacks.append(PlacementGroupCleanerCallback(check_interval_s=0.2))
            return callbacks

    return LeanTrainer


def rendezvous_function() -> Callable[[], tuple[str, int]]:
    """The function that the torch backend runs on rank 0 for an address and a free port."""
    from ray.train._internal.utils import get_address_and_port

    return get_address_and_port

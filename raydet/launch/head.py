"""Queries a Ray head directly for whether it is up and accepts our token: Ray itself retries silently for a minute."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from dataclasses import dataclass

import raydet.launch.ray_settings  # noqa: F401  # isort: skip  -- before ray, which reads the environment at import

import grpc
import ray

from raydet.errors import ConfigError
from raydet.launch.ray_private import (
    CheckAliveRequest,
    GetAllNodeInfoRequest,
    NodeInfoGcsServiceStub,
    canonicalize_bootstrap_address,
    find_node_ids,
    has_token,
    head_channel,
    is_token_auth_enabled,
)

ANSWER_S = 5.0
"""How long the head may take to answer one call."""
START_S = 5.0
"""How long a head may take to come up."""
TOKEN_PLACES = "RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token"


@dataclass(frozen=True, slots=True)
class Head:
    """A head that has answered."""

    address: str
    """HOST:PORT."""
    ray_version: str
    is_open: bool
    """Anyone who reaches it may run programs on the cluster: it requires no token and no certificate."""


def find_head(named: str) -> Head:
    """The head of the cluster that RAY_ADDRESS names, and that this machine is a node of.

    Args:
        named: HOST:PORT, or `auto` for the one on this machine.

    Raises:
        ConfigError: there is none, it rejects the token, or this process cannot be its driver.
    """
    address = _address(named)
    where = f"cannot join the Ray cluster at {address}"
    _check_token(where)
    stub = NodeInfoGcsServiceStub(head_channel(address))
    deadline = time.monotonic() + START_S
    while True:
        try:
            version = stub.CheckAlive(CheckAliveRequest(), timeout=ANSWER_S).ray_version
            nodes = stub.GetAllNodeInfo(GetAllNodeInfoRequest(), timeout=ANSWER_S).node_info_list
            if nodes or time.monotonic() >= deadline:  # a head answers before it is a node
                break
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.UNAVAILABLE or time.monotonic() >= deadline:
                raise ConfigError(f"{where}: {_reason(error)}") from None
        time.sleep(1)
    if version != ray.__version__:
        raise ConfigError(
            f"{where}: it runs Ray {version}, this process Ray {ray.__version__}; install the same release on all nodes"
        )
    if not set(find_node_ids()) & {node.node_id.hex() for node in nodes}:
        raise ConfigError(
            f"{where}: it answers, but this machine is not one of its nodes; run the command there: "
            "`ray job submit -- python -m raydet.tune ...`"
        )
    return Head(address=address, ray_version=version, is_open=_is_open(address))


def _address(named: str) -> str:
    if "://" in named:
        scheme = named.partition("://")[0]
        raise ConfigError(
            f"RAY_ADDRESS must be HOST:PORT of the head, got {scheme}://...; to reach a cluster from elsewhere, use "
            "`ray job submit` with RAY_API_SERVER_ADDRESS"
        )
    try:
        address = canonicalize_bootstrap_address(named)
    except (ConnectionError, ValueError, OSError) as error:
        reason = "Ray is not running on this machine" if named == "auto" else str(error).splitlines()[0]
        raise ConfigError(
            f"cannot join the Ray cluster at {named}: {reason}; RAY_ADDRESS must be HOST:PORT of the head"
        ) from None
    return str(address)


def _check_token(where: str) -> None:
    if not is_token_auth_enabled():
        return
    try:
        is_found = has_token()
    except ray.exceptions.AuthenticationError as error:
        raise ConfigError(f"{where}: {str(error).partition('. ')[0]}; correct the path") from None
    if not is_found:
        raise ConfigError(
            f"{where}: RAY_AUTH_MODE=token, but there is no token; put the cluster's into {TOKEN_PLACES}"
        )


def _reason(error: grpc.RpcError) -> str:
    code, details = error.code(), (error.details() or "").rpartition(": ")[2].rstrip(".]")
    if code is grpc.StatusCode.UNAUTHENTICATED and is_token_auth_enabled():
        return (
            f"it rejects the token (in {TOKEN_PLACES}), which is another cluster's or has been replaced; "
            "`ray get-auth-token` on the head shows the current one"
        )
    if code is grpc.StatusCode.UNAUTHENTICATED:
        return f"it requires a token; set RAY_AUTH_MODE=token, and the token in {TOKEN_PLACES}"
    if code is grpc.StatusCode.UNAVAILABLE:
        return f"nothing answers ({details}); is the head up, and RAY_ADDRESS right?"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {ANSWER_S:.0f} s; is the head alive, and RAY_ADDRESS right?"
    return f"the server there is not a Ray head ({details or code.name}); RAY_ADDRESS must be the head's HOST:PORT"


def _is_open(address: str) -> bool:
    """Whether the head answers a client without token and certificate."""
    if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return False
    with head_channel(address, has_token=False) as channel, suppress(grpc.RpcError):
        NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=ANSWER_S)
        return True
    return False

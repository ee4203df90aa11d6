"""gRPC clients and servers with our settings: limits, keepalive, health, reflection, errors.

Targets and addresses are "unix:/path/worker.sock" or "host:port". Between hosts the control plane
is plain text inside a trusted network, unless the process was given certificates with `use_tls`.
Unix sockets are guarded by their directory and never encrypted; KV bytes never travel here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from transport.address import bound_address, claim_address
from transport.interceptor import ErrorInterceptor, ToStatus
from transport.tls import TlsFiles, channel_credentials, server_credentials

_MAX_MESSAGE_BYTES = 64 << 20
_MAX_METADATA_BYTES = 64 << 10
_CLEAN_UP_S = 10.0  # what cancelled handlers may take to clean up when the server stops

_COMMON_OPTIONS = (
    ("grpc.max_receive_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_send_message_length", _MAX_MESSAGE_BYTES),
    ("grpc.max_metadata_size", _MAX_METADATA_BYTES),  # an error's details travel as metadata
    ("grpc.absolute_max_metadata_size", 2 * _MAX_METADATA_BYTES),
    # A dead peer is noticed after time + timeout, also when no call is open.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
)
_CLIENT_OPTIONS = (
    *_COMMON_OPTIONS,
    ("grpc.enable_http_proxy", 0),  # a cluster's own addresses never lie behind http_proxy
    ("grpc.use_local_subchannel_pool", 1),  # a new channel is a new connection with no back-off yet
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # in truth the deadline of one connection attempt
    ("grpc.max_reconnect_backoff_ms", 1_000),
)
_SERVER_OPTIONS = (
    *_COMMON_OPTIONS,
    ("grpc.so_reuseport", 0),  # else a second server on the same port starts and steals calls
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
)


# Of the whole process, so that no caller of `connect` can forget it and fall back to plain text.
_tls: TlsFiles | None = None


def use_tls(files: TlsFiles | None) -> None:
    """From here on every `connect` and `start_server` of this process that is not on a unix socket
    uses these certificates. Said once, before any of them. Raises OSError for unreadable files.
    """
    global _tls
    if files is not None:
        files.read()
    _tls = files


def connect(target: str) -> grpc.aio.Channel:
    """A channel with a connection of its own, opened by the first call. The caller closes it."""
    if _tls is None or target.startswith("unix:"):
        return grpc.aio.insecure_channel(target, options=_CLIENT_OPTIONS)
    name = ("grpc.ssl_target_name_override", _tls.server_name)
    credentials = channel_credentials(_tls)
    return grpc.aio.secure_channel(target, credentials, options=(*_CLIENT_OPTIONS, name))


class Health(Protocol):
    """The part of grpc_health's aio servicer that a worker needs."""

    async def set(self, service: str, status: int) -> None: ...

    async def enter_graceful_shutdown(self) -> None:
        """Every service is NOT_SERVING from here on; calls under way and new calls still work."""


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that takes calls. `address` is what a client on this host passes to `connect`."""

    address: str
    health: Health
    _server: grpc.aio.Server
    _errors: ErrorInterceptor

    async def stop(self, grace_s: float) -> None:
        """Takes no new call, gives the open ones `grace_s`, cancels the rest, awaits clean-up."""
        await self.health.enter_graceful_shutdown()
        await self._server.stop(grace_s)
        await self._errors.settled(_CLEAN_UP_S)


async def start_server(
    address: str,
    register: Sequence[Callable[[grpc.aio.Server], None]],
    service_names: Sequence[str],
    to_status: ToStatus,
) -> RunningServer:
    """Listens on `address` ("127.0.0.1:0": a free port) and serves what `register` adds.

    `service_names` are the full names, e.g. "triptych.Registry", for health and reflection; the
    health of "" and of each of them is SERVING from the start. An exception of a servicer becomes
    the status that `to_status` names; where it names none, INTERNAL with the exception's type, and
    its traceback in the log.

    Raises OSError when the address is in use or is not ours, ValueError when it cannot be one.
    """
    claim_address(address)
    errors = ErrorInterceptor(to_status)
    server = grpc.aio.server(interceptors=[errors], options=_SERVER_OPTIONS)
    checks: Health = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = [*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
    for add in register:
        add(server)
    for name in service_names:
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        if _tls is None or address.startswith("unix:"):
            port = server.add_insecure_port(address)
        else:
            port = server.add_secure_port(address, server_credentials(_tls))
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: in use, or not an address of ours") from error
    await server.start()
    return RunningServer(bound_address(address, port), checks, server, errors)

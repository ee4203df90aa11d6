"""gRPC clients and servers with our settings: limits, keepalive, health, reflection, errors.

Targets and addresses are "unix:/path/worker.sock" or "host:port". The control plane is plain text
inside a trusted network; KV bytes never travel here.
"""

from __future__ import annotations

import contextlib
import errno
import inspect
import logging
import os
import socket
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import grpc
import grpc.aio
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

ToStatus = Callable[[BaseException], tuple[grpc.StatusCode, str] | None]

_log = logging.getLogger(__name__)

_MAX_MESSAGE_BYTES = 64 << 20
_MAX_METADATA_BYTES = 64 << 10
_MAX_UNIX_PATH_BYTES = 107  # sun_path holds 108 with the terminating zero

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


def connect(target: str) -> grpc.aio.Channel:
    """A channel with a connection of its own, opened by the first call. The caller closes it."""
    return grpc.aio.insecure_channel(target, options=_CLIENT_OPTIONS)


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
    server: grpc.aio.Server

    async def stop(self, grace_s: float) -> None:
        """Takes no new call, gives the open ones `grace_s`, cancels the rest, awaits clean-up."""
        await self.health.enter_graceful_shutdown()
        await self.server.stop(grace_s)


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
    _claim_unix_path(address)
    server = grpc.aio.server(interceptors=[_ErrorInterceptor(to_status)], options=_SERVER_OPTIONS)
    checks: Health = health.aio.HealthServicer()  # type: ignore[attr-defined]
    health_pb2_grpc.add_HealthServicer_to_server(checks, server)
    names = [*service_names, health.SERVICE_NAME, reflection.SERVICE_NAME]
    reflection.enable_server_reflection(names, server)
    for add in register:
        add(server)
    for name in service_names:
        await checks.set(name, health_pb2.HealthCheckResponse.SERVING)
    try:
        port = server.add_insecure_port(address)
    except RuntimeError as error:
        raise OSError(f"cannot listen on {address}: in use, or not an address of ours") from error
    await server.start()
    return RunningServer(_real_address(address, port), checks, server)


def _real_address(address: str, port: int) -> str:
    if address.startswith("unix:"):
        return address
    return f"{address.rpartition(':')[0]}:{port}"


def _claim_unix_path(address: str) -> None:
    """Removes a dead server's socket file; gRPC alone would take a living server's path as well."""
    if not address.startswith("unix:"):
        return
    path = address.removeprefix("unix:").removeprefix("//")
    length = len(os.fsencode(path))
    if length > _MAX_UNIX_PATH_BYTES:
        raise ValueError(
            f"socket path of {length} bytes is too long (at most {_MAX_UNIX_PATH_BYTES}): {path}; "
            "choose a shorter run directory"
        )
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise FileExistsError(errno.EEXIST, "not a socket; refusing to replace it", path)
        if _somebody_listens(path):
            raise OSError(errno.EADDRINUSE, "another server listens on this socket", path)
        os.unlink(path)


def _somebody_listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            return False
        except BlockingIOError:  # a full backlog is somebody's
            return True
        return True


class _ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """The one place where a servicer's exceptions become status codes."""

    def __init__(self, to_status: ToStatus) -> None:
        self._to_status = to_status

    async def intercept_service(
        self,
        continuation: Callable[
            [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any]]
        ],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler[Any, Any]:
        handler: Any = await continuation(handler_call_details)
        if handler is None:  # no such method: gRPC answers UNIMPLEMENTED
            return handler  # type: ignore[return-value]
        kind = f"{'stream' if handler.request_streaming else 'unary'}_"
        kind += "stream" if handler.response_streaming else "unary"
        make_handler = getattr(grpc, f"{kind}_rpc_method_handler")
        guarded = self._guard(getattr(handler, kind), handler_call_details.method)
        guarded_handler: grpc.RpcMethodHandler[Any, Any] = make_handler(
            guarded, handler.request_deserializer, handler.response_serializer
        )
        return guarded_handler

    def _guard(self, behaviour: Callable[..., Any], method: str) -> Callable[..., Awaitable[Any]]:
        async def guarded(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
            try:
                if not inspect.isasyncgenfunction(behaviour):
                    return await behaviour(request, context)
                # Written out, not yielded on: a cancelled call then runs the servicer's `finally`
                # here and now, not when the garbage collector finds the generator.
                async with contextlib.aclosing(behaviour(request, context)) as replies:
                    async for reply in replies:
                        await context.write(reply)
            except grpc.aio.AbortError:
                raise
            except Exception as error:  # the edge of the process: everything ends as a status
                await self._abort(context, error, method)

        return guarded

    async def _abort(
        self, context: grpc.aio.ServicerContext[Any, Any], error: Exception, method: str
    ) -> None:
        status = self._to_status(error)
        if status is None:
            _log.error("%s failed", method, exc_info=error)
            status = grpc.StatusCode.INTERNAL, type(error).__name__
        await context.abort(*status)

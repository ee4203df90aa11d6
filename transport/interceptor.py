"""The one place where a servicer's exceptions become status codes."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import grpc.aio

ToStatus = Callable[[BaseException], tuple[grpc.StatusCode, str] | None]

_Context = grpc.aio.ServicerContext  # generic only for the type checker

# gRPC tells a handler of a broken call in two steps: its reads end or its writes fail, and a moment
# later it is cancelled: in the middle of the clean-up that the first step began. So the first step
# is held back until the second has come.
_WRITE_BROKEN_S = 5.0  # the cancellation is certain; an upper bound
_READ_ENDED_S = 0.02  # it comes only if the client did not just half-close; 20 µs, 20 ms under load

_log = logging.getLogger(__name__)


class ErrorInterceptor(grpc.aio.ServerInterceptor):  # type: ignore[type-arg]
    """Wraps handlers of all four kinds, written as coroutine or async generator functions.

    Cancellation (the client left, the deadline passed, the server stops) is no error: it reaches
    the handler as CancelledError (GeneratorExit at a `yield`) and goes on to gRPC. The end of the
    requests means that the client half-closed, and comes 20 ms late for that.
    """

    def __init__(self, to_status: ToStatus) -> None:
        self._to_status = to_status
        self._calls: set[asyncio.Task[Any]] = set()
        self._stopped = False

    async def settled(self, timeout_s: float) -> None:
        """Waits until every handler has returned: gRPC's own stop does not wait for clean-up.

        Called once the server has stopped; errors then have no call to go to, only the log.
        """
        self._stopped = True
        if self._calls:
            _, stuck = await asyncio.wait(self._calls, timeout=timeout_s)
            for task in stuck:
                _log.error("%s did not end within %g s", task.get_name(), timeout_s)

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
        guarded_handler: grpc.RpcMethodHandler[Any, Any] = make_handler(
            self._guard(getattr(handler, kind), kind, handler_call_details.method),
            handler.request_deserializer,
            handler.response_serializer,
        )
        return guarded_handler

    def _guard(
        self, behaviour: Callable[..., Any], kind: str, method: str
    ) -> Callable[..., Awaitable[Any]]:
        async def guarded(request: Any, context: _Context[Any, Any]) -> Any:
            task = asyncio.current_task()
            assert task is not None, "gRPC runs a handler in a task of its own"
            self._calls.add(task)
            task.add_done_callback(self._calls.discard)
            if kind == "stream_stream":
                request = _Requests(request)
            try:
                return await _answer(behaviour(request, context), context)
            except grpc.aio.BaseError:
                raise  # gRPC's own: the servicer aborted, the peer is gone, the server stopped
            except Exception as error:  # the edge of the process: everything ends as a status
                code, details = explain_error(error, self._to_status, method)
                if self._stopped:
                    raise asyncio.CancelledError from error
                await context.abort(code, details)

        return guarded


def explain_error(
    error: BaseException, to_status: ToStatus, method: str
) -> tuple[grpc.StatusCode, str]:
    """What the peer is told. The traceback of what `to_status` does not know goes to the log."""
    status = to_status(error)
    if status is None:
        _log.error("%s failed", method, exc_info=error)
        status = grpc.StatusCode.INTERNAL, type(error).__name__
    return status


class _Requests:
    """The requests of a stream that ends when the client half-closed, not when the call broke."""

    def __init__(self, requests: AsyncIterator[Any]) -> None:
        self._requests = requests

    def __aiter__(self) -> _Requests:
        return self

    async def __anext__(self) -> Any:
        try:
            return await anext(self._requests)
        except StopAsyncIteration:
            await asyncio.sleep(_READ_ENDED_S)
            raise


async def _answer(outcome: Any, context: _Context[Any, Any]) -> Any:
    if not inspect.isasyncgen(outcome):
        return await outcome
    # Written out, not yielded on: a cancelled call then runs the servicer's `finally` here and now,
    # not when the garbage collector finds the generator.
    async with contextlib.aclosing(outcome):
        async for reply in outcome:
            await _write(context, reply)


async def _write(context: _Context[Any, Any], reply: Any) -> None:
    try:
        await context.write(reply)
    except grpc.aio.InternalError:
        await asyncio.sleep(_WRITE_BROKEN_S)
        raise

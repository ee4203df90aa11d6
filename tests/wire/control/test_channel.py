"""What every server and client of the control plane can rely on."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from transport.channel import connect
from triptych.errors import CapacityError, RequestError, WorkerError
from triptych.wire import from_rpc_error

KINDS = ("unary_unary", "unary_stream", "stream_unary", "stream_stream")
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


def handlers(**behaviours: Callable[..., Any]) -> Callable[[grpc.aio.Server], None]:
    """Serves /test.Service/<kind> for bytes, each with the given behaviour."""
    made = {kind: getattr(grpc, f"{kind}_rpc_method_handler")(f) for kind, f in behaviours.items()}
    generic = grpc.method_handlers_generic_handler("test.Service", made)
    return lambda server: server.add_generic_rpc_handlers((generic,))


async def ask(channel: grpc.aio.Channel, kind: str, message: bytes = b"", **options: Any) -> bytes:
    """One call of any kind; the replies joined."""
    method = getattr(channel, kind)(f"/test.Service/{kind}")
    call = method(iter([message]) if kind.startswith("stream_") else message, **options)
    if kind.endswith("_unary"):
        return await call
    return b"".join([reply async for reply in call])


async def echo(request: bytes, context: Any) -> bytes:
    return request


def failing(kind: str, error: Exception) -> Callable[[grpc.aio.Server], None]:
    async def fail(request: Any, context: Any) -> bytes:
        raise error

    async def fail_midway(request: Any, context: Any) -> AsyncIterator[bytes]:
        yield b"some"
        raise error

    return handlers(**{kind: fail_midway if kind.endswith("_stream") else fail})


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_of_ours_arrives_with_its_param_and_code(kind, serve, address):
    error = RequestError("temperature: must be at least 0", param="temperature", code="bad")
    server = await serve(address, failing(kind, error))
    async with connect(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, kind)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    arrived = from_rpc_error(caught.value)
    assert type(arrived) is RequestError
    assert (str(arrived), arrived.param, arrived.code) == (str(error), "temperature", "bad")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_bug_shows_its_type_to_the_peer_and_its_traceback_to_the_log(
    kind, serve, address, caplog
):
    server = await serve(address, failing(kind, ZeroDivisionError("secret")))
    async with connect(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, kind)
    assert caught.value.code() is grpc.StatusCode.INTERNAL
    assert caught.value.details() == "ZeroDivisionError"
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage() == f"/test.Service/{kind} failed"
    assert isinstance(record.exc_info[1], ZeroDivisionError)


async def test_a_task_groups_only_error_speaks_for_the_group(serve, address):
    async def fail(request, context):
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(echo_then_fail())

    async def echo_then_fail():
        raise CapacityError("no free blocks")

    server = await serve(address, handlers(unary_unary=fail))
    async with connect(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, "unary_unary")
    assert isinstance(from_rpc_error(caught.value), CapacityError)


async def test_a_servicers_own_abort_passes_unchanged(serve, address):
    async def refuse(request, context):
        await context.abort(grpc.StatusCode.NOT_FOUND, "no such thing")

    server = await serve(address, handlers(unary_unary=refuse))
    async with connect(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, "unary_unary")
    assert (caught.value.code(), caught.value.details()) == (
        grpc.StatusCode.NOT_FOUND,
        "no such thing",
    )


@pytest.mark.parametrize("kind", KINDS)
async def test_a_call_without_trouble_is_answered(kind, serve, address):
    async def whole(request, context):
        return request if isinstance(request, bytes) else b"".join([part async for part in request])

    async def halves(request, context):
        reply = await whole(request, context)
        yield reply[:2]
        yield reply[2:]

    server = await serve(address, handlers(**{kind: whole if kind.endswith("unary") else halves}))
    async with connect(server.address) as channel:
        assert await ask(channel, kind, b"hello") == b"hello"


async def test_a_stream_may_be_written_by_a_coroutine(serve, address):
    async def write_twice(request, context):
        await context.write(b"a")
        await context.write(b"b")

    server = await serve(address, handlers(unary_stream=write_twice))
    async with connect(server.address) as channel:
        assert await ask(channel, "unary_stream") == b"ab"


class Endless:
    """A handler that never ends by itself; its clean-up awaits, as a real one does."""

    def __init__(self) -> None:
        self.cleaned_up = asyncio.Event()

    async def stream(self, request, context):
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.cleaned_up.set()

    async def unary(self, request, context):
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            self.cleaned_up.set()


@pytest.mark.parametrize("kind", KINDS)
async def test_a_deadline_cancels_the_handler(kind, serve, address):
    endless = Endless()
    behaviour = endless.stream if kind.endswith("_stream") else endless.unary
    server = await serve(address, handlers(**{kind: behaviour}))
    async with connect(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, kind, timeout=0.2)
        async with asyncio.timeout(5):
            await endless.cleaned_up.wait()
    arrived = from_rpc_error(caught.value)
    assert isinstance(arrived, WorkerError)
    assert "deadline" in str(arrived)


@pytest.mark.parametrize("kind", ["unary_stream", "stream_stream"])
async def test_a_client_that_cancels_runs_the_handlers_finally(kind, serve, address):
    endless = Endless()
    server = await serve(address, handlers(**{kind: endless.stream}))
    async with connect(server.address) as channel:
        argument = b"" if kind == "unary_stream" else iter([b""])
        call = getattr(channel, kind)(f"/test.Service/{kind}")(argument)
        assert await call.read() == b"first"
        call.cancel()
        async with asyncio.timeout(5):
            await endless.cleaned_up.wait()


async def test_a_cancellation_never_interrupts_the_clean_up_after_a_failed_write(serve, address):
    clean_up = ""
    done = asyncio.Event()

    async def flood(request, context):
        nonlocal clean_up
        clean_up = "interrupted"
        try:
            while True:
                yield bytes(1 << 20)  # the flow-control window is soon full
        finally:
            try:
                await asyncio.sleep(0)
                clean_up = "complete"
            finally:
                done.set()

    server = await serve(address, handlers(unary_stream=flood))
    async with connect(server.address) as channel:
        for _ in range(50):  # a matter of timing: each has a chance of some ten percent to show it
            done.clear()
            call = channel.unary_stream("/test.Service/unary_stream")(b"")
            await call.read()
            call.cancel()
            async with asyncio.timeout(5):
                await done.wait()
            assert clean_up == "complete"


@pytest.mark.parametrize("ending", ["cancel", "disconnect"])
async def test_a_broken_call_does_not_look_like_a_half_closed_one(ending, serve, address):
    story: list[str] = []
    done = asyncio.Event()

    async def lease(requests, context):
        try:
            yield b"granted"
            async for _ in requests:
                pass
            story.append("half-closed")
        except (asyncio.CancelledError, GeneratorExit):  # the latter while the yield is written
            story.append("cancelled")
            raise
        finally:
            try:
                await asyncio.sleep(0)
                story.append("cleaned up")
            finally:
                done.set()

    server = await serve(address, handlers(stream_stream=lease))
    for _ in range(20):  # a matter of timing
        story.clear()
        done.clear()
        async with connect(server.address) as channel:
            call = channel.stream_stream("/test.Service/stream_stream")()
            assert await call.read() == b"granted"
            if ending == "cancel":
                call.cancel()
        async with asyncio.timeout(5):
            await done.wait()
        assert story == ["cancelled", "cleaned up"]


async def test_a_client_that_half_closes_still_hears_the_end(serve, address):
    async def count(requests, context):
        total = 0
        async for _ in requests:
            total += 1
        yield str(total).encode()

    server = await serve(address, handlers(stream_stream=count))
    async with connect(server.address) as channel:
        call = channel.stream_stream("/test.Service/stream_stream")()
        await call.write(b"")
        await call.write(b"")
        await call.done_writing()
        assert await call.read() == b"2"
        assert await call.read() is grpc.aio.EOF


async def test_a_client_that_dies_runs_the_handlers_finally(serve, address):
    endless = Endless()
    server = await serve(address, handlers(unary_stream=endless.stream))
    async with connect(server.address) as channel:
        call = channel.unary_stream("/test.Service/unary_stream")(b"")
        await call.read()
    async with asyncio.timeout(5):
        await endless.cleaned_up.wait()


async def test_stop_waits_for_the_clean_up_of_cancelled_handlers(serve, address):
    endless = Endless()
    server = await serve(address, handlers(unary_stream=endless.stream))
    async with connect(server.address) as channel:
        call = channel.unary_stream("/test.Service/unary_stream")(b"")
        await call.read()
        await server.stop(0.0)
        assert endless.cleaned_up.is_set()
        with pytest.raises(grpc.aio.AioRpcError):
            await call.read()


async def test_stop_lets_open_calls_finish_but_takes_no_new_ones(serve, address):
    started, finish = asyncio.Event(), asyncio.Event()

    async def slow(request, context):
        started.set()
        await finish.wait()
        return b"done"

    server = await serve(address, handlers(unary_unary=slow))
    async with connect(server.address) as channel, connect(server.address) as late:
        answer = asyncio.ensure_future(ask(channel, "unary_unary"))
        await started.wait()
        stopping = asyncio.create_task(server.stop(30.0))
        await asyncio.sleep(0)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(late, "unary_unary")
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        finish.set()
        assert await answer == b"done"
        await stopping


async def test_an_error_during_clean_up_harms_nobody_else(serve, address, caplog):
    async def fail_late(request, context):
        try:
            yield b"first"
            await asyncio.Event().wait()
        finally:
            raise ZeroDivisionError

    server = await serve(address, handlers(unary_stream=fail_late, unary_unary=echo))
    async with connect(server.address) as channel:
        call = channel.unary_stream("/test.Service/unary_stream")(b"")
        await call.read()
        call.cancel()
        assert await ask(channel, "unary_unary", b"well") == b"well"
    await server.stop(0.0)
    assert "/test.Service/unary_stream failed" in caplog.text


async def test_a_message_beyond_grpcs_default_limit_passes(serve, address):
    server = await serve(address, handlers(unary_unary=echo))
    message = bytes(5 << 20)
    async with connect(server.address) as channel:
        assert await ask(channel, "unary_unary", message) == message


async def test_a_long_error_message_arrives_in_any_script(serve, address):
    error = RequestError("🙈" * 3000, param="messages")
    server = await serve(address, failing("unary_unary", error))
    async with connect(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, "unary_unary")
    arrived = from_rpc_error(caught.value)
    assert isinstance(arrived, RequestError)
    assert str(arrived) == "🙈" * 1999 + "…"


async def test_a_method_that_does_not_exist_is_unimplemented(serve, address):
    server = await serve(address)
    async with connect(server.address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, "unary_unary")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_nobody_at_the_target_is_a_worker_error(socket_dir):
    async with connect(f"unix:{socket_dir}/nobody.sock") as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ask(channel, "unary_unary")
    arrived = from_rpc_error(caught.value)
    assert isinstance(arrived, WorkerError)
    assert "unreachable" in str(arrived)


async def test_a_second_server_on_the_same_address_fails_loudly(serve, address):
    first = await serve(address, handlers(unary_unary=echo))
    with pytest.raises(OSError, match="listen"):
        await serve(first.address)
    async with connect(first.address) as channel:
        assert await ask(channel, "unary_unary", b"still here") == b"still here"


async def test_a_host_that_does_not_resolve_is_refused(serve):
    with pytest.raises(OSError, match=r"cannot listen on 203\.0\.113\.7:0"):
        await serve("203.0.113.7:0")


async def test_a_dead_servers_socket_file_is_replaced(serve, socket_dir):
    path = socket_dir / "server.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    assert path.exists()
    server = await serve(f"unix:{path}", handlers(unary_unary=echo))
    async with connect(server.address) as channel:
        assert await ask(channel, "unary_unary", b"hello") == b"hello"


async def test_a_file_that_is_no_socket_is_left_alone(serve, socket_dir):
    path = socket_dir / "server.sock"
    path.write_text("precious")
    with pytest.raises(FileExistsError, match="not a socket"):
        await serve(f"unix:{path}")
    assert path.read_text() == "precious"


async def test_a_socket_path_that_is_too_long_is_refused_with_a_remedy(serve):
    path = Path("/tmp") / ("x" * 103)
    with pytest.raises(ValueError, match="107 bytes, this one has 108; choose a shorter"):
        await serve(f"unix:{path}")


async def test_a_socket_path_of_the_greatest_length_works(serve, socket_dir):
    path = socket_dir / ("x" * (106 - len(os.fspath(socket_dir))))
    assert len(os.fspath(path)) == 107
    server = await serve(f"unix:{path}", handlers(unary_unary=echo))
    async with connect(server.address) as channel:
        assert await ask(channel, "unary_unary", b"hello") == b"hello"


async def test_reflection_lists_the_services(serve, address):
    server = await serve(address, names=("triptych.Registry",))
    async with connect(server.address) as channel:
        stub = reflection_pb2_grpc.ServerReflectionStub(channel)
        ask_for_all = reflection_pb2.ServerReflectionRequest(list_services="")
        [reply] = [reply async for reply in stub.ServerReflectionInfo(iter([ask_for_all]))]
    assert [service.name for service in reply.list_services_response.service] == [
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
        "triptych.Registry",
    ]


async def test_health_turns_to_not_serving_on_drain_while_calls_still_work(serve, address):
    server = await serve(address, handlers(unary_unary=echo), names=("test.Service",))
    async with connect(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        async def check(service: str) -> int:
            return (await stub.Check(health_pb2.HealthCheckRequest(service=service))).status

        assert [await check(""), await check("test.Service")] == [SERVING, SERVING]
        await server.health.enter_graceful_shutdown()
        assert [await check(""), await check("test.Service")] == [NOT_SERVING, NOT_SERVING]
        assert await ask(channel, "unary_unary", b"last orders") == b"last orders"


async def test_a_health_watcher_is_told_of_the_drain(serve, address):
    server = await serve(address)
    async with connect(server.address) as channel:
        watch = health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        await server.health.enter_graceful_shutdown()
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await watch.read()

"""What a collector of traces hears of one request."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from tests.cluster.test_request import prompt_of
from triptych.testing.cluster import Cluster

pytestmark = [pytest.mark.cluster, pytest.mark.asyncio(loop_scope="module")]

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


@dataclass
class Collector:
    """Takes OTLP over HTTP."""

    url: str = ""
    spans: dict[str, Span] = field(default_factory=dict)  # of the caller's trace, by name
    news: asyncio.Event = field(default_factory=asyncio.Event)

    async def take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := (await reader.readuntil(b"\r\n\r\n")).decode().lower():
            size = int(head.split("content-length:")[1].split()[0])
            body = await reader.readexactly(size)
            if "content-encoding: gzip" in head:
                body = gzip.decompress(body)
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                for scope in resource.scope_spans:
                    ours = [span for span in scope.spans if span.trace_id.hex() in CALLER]
                    self.spans.update({span.name: span for span in ours})
            self.news.set()
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            await writer.drain()

    async def until(self, names: set[str]) -> None:
        async with asyncio.timeout(60):
            while not names <= self.spans.keys():
                self.news.clear()
                await self.news.wait()


@contextlib.asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):
            await collector.take(reader, writer)

    async with await asyncio.start_server(take, "127.0.0.1", 0) as server:
        collector.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/traces"
        yield collector
        server.close()


async def test_router_home_and_prefill_worker_tell_one_trace(
    start_cluster: Callable[..., contextlib.AbstractAsyncContextManager[Cluster]],
) -> None:
    async with (
        collecting() as collector,
        start_cluster(f"tracing.endpoint={collector.url}") as cluster,
    ):
        body = {"model": "tiny", "prompt": prompt_of(200, 1), "max_tokens": 4, "ignore_eos": True}
        reply = await cluster.http.post(
            "/v1/completions", json=body, headers={"traceparent": CALLER}
        )
        assert reply.status_code == 200, reply.text
        served = "POST /v1/completions"
        await collector.until({served, "generate", "prefill", "prompt", "decode"})
    spans = collector.spans
    assert spans[served].parent_span_id.hex() == CALLER.split("-")[2]
    assert spans["generate"].parent_span_id == spans[served].span_id
    for child in ("prefill", "prompt", "decode"):
        assert spans[child].parent_span_id == spans["generate"].span_id
    told = {item.key: item.value for item in spans["generate"].attributes}
    assert told["gen_ai.usage.input_tokens"].int_value == 200
    assert told["triptych.prefill_worker"].string_value == "prefill-0"

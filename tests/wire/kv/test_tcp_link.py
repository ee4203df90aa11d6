"""The tcp link's protocol: who may read, and what a broken peer can do (nothing)."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress

import numpy as np
import pytest

from transport.kv import tcp_source
from transport.kv.base import KvLinkError, LinkUnusable
from transport.kv.frames import recv_frame, send_frame
from transport.kv.reads import READ
from transport.kv.region import Region, RegionShape, probe_pattern
from transport.kv.serving import SocketServer
from transport.kv.tcp import TcpLink, TcpSession
from transport.kv.tcp_source import TcpSource
from triptych.testing.kv_pools import GENERATION, fill_pool, untouched, whole_blocks

SHAPE = RegionShape(block_bytes=4096, num_blocks=8)
WAIT_S = 20.0

MakePool = Callable[[RegionShape], Region]


@pytest.fixture
def source(make_pool: MakePool) -> Region:
    region = make_pool(SHAPE)
    fill_pool(region, seed=1)
    return region


@pytest.fixture
def served(source: Region, owned: ExitStack) -> TcpSource:
    return owned.enter_context(closing(TcpLink().serve(source)))


@pytest.fixture
def raw(served: TcpSource) -> Iterator[socket.socket]:
    """A connection that speaks for itself."""
    fields = json.loads(served.endpoint)
    with socket.create_connection((fields["host"], fields["port"]), timeout=WAIT_S) as connection:
        yield connection


def say_hello(connection: socket.socket, served: TcpSource) -> None:
    send_frame(connection, {"token": json.loads(served.endpoint)["token"]})
    assert recv_frame(connection)[0]["block_bytes"] == SHAPE.block_bytes


def still_serves(served: TcpSource, source: Region, home: Region) -> bool:
    with closing(TcpLink().connect(served.endpoint, home)) as session:
        session.start(whole_blocks([1], [2], SHAPE.block_bytes)).wait(WAIT_S)
    return bool(np.array_equal(home.blocks[2], source.blocks[1]))


def test_a_wrong_token_is_refused(served: TcpSource, make_pool: MakePool) -> None:
    fields = json.loads(served.endpoint)
    endpoint = json.dumps({**fields, "token": "0" * len(fields["token"])})

    with pytest.raises(LinkUnusable, match="wrong token"):
        TcpLink().connect(endpoint, make_pool(SHAPE))


def test_every_source_has_its_own_token(served: TcpSource, source: Region) -> None:
    with closing(TcpLink().serve(source)) as another:
        tokens = {json.loads(item.endpoint)["token"] for item in (served, another)}
    assert len(tokens) == 2


@pytest.mark.parametrize(
    "noise",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        struct.pack("<4sII", b"TKV1", 1 << 31, 0),
        struct.pack("<4sII", b"TKV1", 2, 1 << 31),
        struct.pack("<4sII", b"TKV1", 2, 0) + b"[]",
        struct.pack("<4sII", b"TKV1", 2, 0) + b"{{",
        struct.pack("<4sII", b"TKV1", 2, 0) + b"{}",
    ],
)
def test_noise_instead_of_a_hello_is_hung_up_on(
    raw: socket.socket, served: TcpSource, source: Region, make_pool: MakePool, noise: bytes
) -> None:
    raw.sendall(noise)
    with suppress(ConnectionResetError):  # what it did not care to read
        while raw.recv(4096):
            pass

    assert still_serves(served, source, make_pool(SHAPE))


def test_a_silent_client_is_hung_up_on(
    monkeypatch: pytest.MonkeyPatch, source: Region, owned: ExitStack
) -> None:
    monkeypatch.setattr(tcp_source, "HELLO_S", 0.05)
    served = owned.enter_context(closing(TcpLink().serve(source)))
    fields = json.loads(served.endpoint)

    with socket.create_connection((fields["host"], fields["port"]), timeout=WAIT_S) as client:
        assert client.recv(1) == b""


def rows(*values: tuple[int, int, int, int, int]) -> bytes:
    return np.array(list(values), dtype=READ).tobytes()


@pytest.mark.parametrize(
    "table",
    [
        rows((8, GENERATION, 0, 0, 16)),
        rows((2**63, GENERATION, 0, 0, 16)),
        rows((0, GENERATION, 0, 4090, 16)),
        rows((0, GENERATION, 0, 2**64 - 8, 16)),
        rows((0, GENERATION, 0, 16, 2**64 - 8)),
        rows((0, GENERATION, 0, 0, 0)),
        b"half a row",
    ],
)
def test_a_read_outside_the_pool_is_refused(
    raw: socket.socket, served: TcpSource, source: Region, make_pool: MakePool, table: bytes
) -> None:
    say_hello(raw, served)

    send_frame(raw, {"op": "read"}, table)

    assert recv_frame(raw)[0]["end"] == "bad"
    assert raw.recv(1) == b""
    assert still_serves(served, source, make_pool(SHAPE))


def test_an_oversized_request_is_refused(raw: socket.socket, served: TcpSource) -> None:
    say_hello(raw, served)

    raw.sendall(struct.pack("<4sII", b"TKV1", 2, 1 << 30) + b"{}")

    assert recv_frame(raw)[0]["end"] == "bad"


def test_a_home_that_leaves_in_the_middle_harms_nobody(
    raw: socket.socket, served: TcpSource, source: Region, make_pool: MakePool
) -> None:
    say_hello(raw, served)
    send_frame(raw, {"op": "read"}, rows(*[(at, GENERATION, 0, 0, 4096) for at in range(8)] * 500))
    raw.close()

    assert still_serves(served, source, make_pool(SHAPE))


def test_a_source_takes_a_bounded_number_of_connections() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    address = listener.getsockname()

    def stay(connection: socket.socket) -> None:
        connection.recv(1)

    server = SocketServer(listener, stay, name="test", max_connections=2)
    with ExitStack() as stack:
        stack.callback(server.close)
        clients = [
            stack.enter_context(socket.create_connection(address, timeout=WAIT_S)) for _ in range(3)
        ]
        assert clients[2].recv(1) == b""


class LyingSource:
    """Greets as a source should, then answers every read with `lie`."""

    def __init__(self, lie: Callable[[socket.socket], None]) -> None:
        self._lie = lie
        listener = socket.create_server(("127.0.0.1", 0))
        self._port = listener.getsockname()[1]
        self._server = SocketServer(listener, self._answer, name="liar", max_connections=4)

    @property
    def endpoint(self) -> str:
        return json.dumps({"host": "127.0.0.1", "port": self._port, "token": ""})

    def close(self) -> None:
        self._server.close()

    def _answer(self, connection: socket.socket) -> None:
        recv_frame(connection)
        send_frame(connection, {"block_bytes": SHAPE.block_bytes, "num_blocks": SHAPE.num_blocks})
        recv_frame(connection)
        page = probe_pattern(SHAPE).tobytes()
        send_frame(connection, {"bytes": len(page)})
        connection.sendall(page)
        send_frame(connection, {"end": "ok"})
        recv_frame(connection, 1 << 20)
        self._lie(connection)


def too_much(connection: socket.socket) -> None:
    send_frame(connection, {"bytes": 1 << 40})


def too_little(connection: socket.socket) -> None:
    send_frame(connection, {"end": "ok"})


def negative(connection: socket.socket) -> None:
    send_frame(connection, {"bytes": -4096})


def nonsense(connection: socket.socket) -> None:
    connection.sendall(b"x" * 4096)


def goodbye(connection: socket.socket) -> None:
    send_frame(connection, {"bytes": 4096})
    connection.sendall(b"x" * 100)


@pytest.mark.parametrize("lie", [too_much, too_little, negative, nonsense, goodbye])
def test_a_source_that_breaks_the_protocol_fails_the_fetch(
    lie: Callable[[socket.socket], None], make_pool: MakePool, owned: ExitStack
) -> None:
    home = make_pool(SHAPE)
    liar = owned.enter_context(closing(LyingSource(lie)))
    session: TcpSession = owned.enter_context(closing(TcpLink().connect(liar.endpoint, home)))
    transfer = session.start(whole_blocks([0], [3], SHAPE.block_bytes))

    with pytest.raises(KvLinkError):
        transfer.wait(WAIT_S)

    assert transfer.fence()
    assert untouched(home.blocks[:3]) and untouched(home.blocks[4:])


def test_an_address_that_is_not_ours_to_serve_is_unusable(source: Region) -> None:
    with pytest.raises(LinkUnusable, match=r"cannot listen on 203\.0\.113\.1"):
        TcpLink("203.0.113.1").serve(source)


def test_ipv6_works_as_well(source: Region, make_pool: MakePool) -> None:
    try:
        served = TcpLink("::1").serve(source)
    except LinkUnusable as error:
        pytest.skip(str(error))
    with closing(served):
        assert still_serves(served, source, make_pool(SHAPE))

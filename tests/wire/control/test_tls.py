"""Calls between hosts, where both sides must show a certificate of the same authority."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from transport import channel
from transport.channel import connect, use_tls
from transport.tls import TlsFiles
from triptych.certificates import write_certificates
from triptych.config import parse_config
from triptych.errors import ConfigError
from triptych.tls import setup_tls

TCP = "127.0.0.1:0"


def certificates(folder: Path, name: str = "triptych") -> TlsFiles:
    ca, cert, key = write_certificates(folder, server_name=name, days=1)
    return TlsFiles(cert, key, ca, name)


@pytest.fixture(autouse=True)
def plain_text_afterwards() -> Iterator[None]:
    yield
    use_tls(None)


async def is_serving(target: str) -> bool:
    async with connect(target) as opened:
        request = health_pb2.HealthCheckRequest()
        reply = await health_pb2_grpc.HealthStub(opened).Check(request, timeout=5)
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)


async def fails(target: str) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await is_serving(target)
    return caught.value.code()


async def test_processes_of_one_authority_understand_each_other(serve, tmp_path):
    use_tls(certificates(tmp_path))
    server = await serve(TCP)
    assert await is_serving(server.address)


async def test_a_client_without_a_certificate_is_turned_away(serve, tmp_path):
    use_tls(certificates(tmp_path))
    server = await serve(TCP)
    use_tls(None)
    assert await fails(server.address) is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize("stranger", ["client", "server"])
async def test_another_authority_is_not_trusted(serve, tmp_path, stranger: str):
    ours, theirs = certificates(tmp_path / "ours"), certificates(tmp_path / "theirs")
    use_tls(ours if stranger == "client" else theirs)
    server = await serve(TCP)
    use_tls(theirs if stranger == "client" else ours)
    assert await fails(server.address) is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_of_another_cluster_name_is_not_trusted(serve, tmp_path):
    files = certificates(tmp_path, "other")
    use_tls(files)
    server = await serve(TCP)
    use_tls(TlsFiles(files.cert, files.key, files.ca, "triptych"))
    assert await fails(server.address) is grpc.StatusCode.UNAVAILABLE


async def test_a_renewed_certificate_is_used_without_a_restart(serve, tmp_path):
    files = certificates(tmp_path / "now")
    use_tls(files)
    server = await serve(TCP)
    assert await is_serving(server.address)
    renewed = certificates(tmp_path / "renewed")
    for old, new in ((files.cert, renewed.cert), (files.key, renewed.key), (files.ca, renewed.ca)):
        new.replace(old)
    assert await is_serving(server.address)


async def test_a_unix_socket_needs_no_certificate(serve, socket_dir, tmp_path):
    use_tls(certificates(tmp_path))
    server = await serve(f"unix:{socket_dir}/server.sock")
    use_tls(None)
    assert await is_serving(server.address)


def test_a_missing_file_is_named_before_anything_is_served(tmp_path):
    files = certificates(tmp_path)
    files.key.unlink()
    tls = {"cert": str(files.cert), "key": str(files.key), "ca": str(files.ca)}
    with pytest.raises(ConfigError, match=r"tls: cannot read .*tls\.key"):
        setup_tls(parse_config({"tls": tls}))
    assert channel._tls is None


def test_certificates_are_not_overwritten_and_their_key_is_private(tmp_path):
    files = certificates(tmp_path)
    assert files.key.stat().st_mode & 0o077 == 0
    with pytest.raises(ConfigError, match="exists"):
        certificates(tmp_path)

"""The probe behind `triptych doctor`."""

from __future__ import annotations

from pathlib import Path

import pytest

from transport.kv.nixl_agent import REMEDY, library_present
from transport.kv.probe import probe_links


def test_links_that_work_are_proven_and_timed(tmp_path: Path) -> None:
    reports = probe_links(["shm", "tcp"], mib=4, run_dir=tmp_path)

    assert [report.link for report in reports] == ["shm", "tcp"]
    assert [report.path for report in reports] == ["shm", "tcp"]
    for report in reports:
        assert report.ok, report.reason
        assert report.gb_s > 0
        assert report.memcpy_gb_s > 0
    assert not list(tmp_path.iterdir())


def test_a_link_that_nobody_knows_is_reported(tmp_path: Path) -> None:
    [report] = probe_links(["carrier-pigeon"], mib=1, run_dir=tmp_path)

    assert not report.ok
    assert "carrier-pigeon" in report.reason


def test_a_link_that_cannot_serve_is_reported(tmp_path: Path) -> None:
    [report] = probe_links(["shm"], mib=1, run_dir=tmp_path / "missing")

    assert not report.ok
    assert "cannot listen on" in report.reason


@pytest.mark.skipif(not library_present(), reason=REMEDY)
def test_another_path_than_the_one_asked_for_is_not_ok(tmp_path: Path) -> None:
    any_path, rdma = probe_links(["nixl", "nixl:rdma"], mib=4, run_dir=tmp_path)

    assert any_path.ok, any_path.reason
    if any_path.path == "nixl:rdma":
        pytest.skip("this machine has RDMA")
    assert not rdma.ok
    assert rdma.reason == f"asked for nixl:rdma, but the bytes take {any_path.path}"

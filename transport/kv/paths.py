"""Names of paths: a link, or, behind a colon, one of the ways that it may take ("nixl:rdma")."""

from __future__ import annotations


def link_of(path: str) -> str:
    return path.partition(":")[0]


def takes(path: str, wanted: str) -> bool:
    """Whether a proven path is what was asked for: "nixl" allows any of NIXL's, "nixl:rdma" one."""
    return wanted in (path, link_of(path))

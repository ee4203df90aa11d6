"""Who somebody is by their key, and configurations that cannot be."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from router.admission.fields import priority_of, salt_of
from router.admission.tenants import Tenants
from triptych.admission_config import TenantConfig
from triptych.config import RouterConfig, parse_config
from triptych.errors import ConfigError, RequestError
from triptych.request import PageBudget, SparseAttention

ACME = TenantConfig(name="acme", keys=("a",), isolate=True, min_priority=0, max_priority=5)


def tenants(**router: Any) -> Tenants:
    return Tenants.read(RouterConfig(**router))


def test_keys_lead_to_their_tenants_and_api_keys_to_the_default_one(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text("# of acme\nfirst\n\n second \n")
    found = tenants(api_keys=("plain",), tenants=({"name": "acme", "key_file": file},))
    owners = [found.of_key(key) for key in ("plain", "first", "second")]
    assert [owner and owner.name for owner in owners] == ["default", "acme", "acme"]
    assert found.of_key("") is None


def test_without_any_key_everybody_is_the_default_tenant() -> None:
    found = tenants(tenants=({"name": "default", "max_concurrent": 3},))
    assert not found.keys_are_asked_for
    assert found.anybody.max_concurrent == 3


@pytest.mark.parametrize(
    ("router", "message"),
    [
        ({"tenants": [{"name": "a"}]}, "tenant 'a' needs keys or a key_file"),
        ({"tenants": [{"name": "a", "keys": [""]}]}, "tenant 'a' has an empty key"),
        ({"tenants": [{"name": "a", "keys": [key]} for key in "xy"]}, "two are named"),
        ({"tenants": [{"name": "a", "keys": ["x"]}], "api_keys": ["x"]}, "have a key in common"),
        ({"tenants": [{"name": "A b", "keys": ["x"]}]}, "router.tenants.0.name"),
        ({"tenants": [{"name": "a", "keys": ["x"], "weight": 0}]}, "router.tenants.0.weight"),
        ({"tenants": [{"name": "a", "keys": ["x"], "token_burst": 9}]}, "has no tokens_per_s"),
        (
            {"tenants": [{"name": "a", "keys": ["x"], "min_priority": 2, "max_priority": 1}]},
            "more than max_priority",
        ),
        ({"slo": {"ttft_ms": 0}}, "router.slo.ttft_ms"),
    ],
)
def test_a_configuration_that_cannot_be_is_refused_with_the_key(
    router: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_config({"router": router})


def test_a_key_file_that_is_not_there_or_empty_is_named(tmp_path: Path) -> None:
    entry = {"name": "acme", "key_file": tmp_path / "keys"}
    with pytest.raises(ConfigError, match=r"router\.tenants\[0\]\.key_file: cannot read .*keys"):
        tenants(tenants=(entry,))
    (tmp_path / "keys").write_text("# nothing\n")
    with pytest.raises(ConfigError, match="holds no key"):
        tenants(tenants=(entry,))


def test_a_key_file_with_another_tenants_key_is_refused(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("plain\n")
    with pytest.raises(ConfigError, match="has a key of 'default'"):
        tenants(api_keys=("plain",), tenants=({"name": "a", "key_file": tmp_path / "keys"},))


def test_no_salt_of_a_caller_passes_for_an_isolated_tenants() -> None:
    default = TenantConfig(name="default")
    assert salt_of(default, "mine") == "mine"
    assert salt_of(ACME, "mine") == "tenant:acme:mine"
    with pytest.raises(RequestError, match="cache_salt"):
        salt_of(default, "tenant:acme:mine")


def test_other_settings_of_attention_are_other_salts() -> None:
    default = TenantConfig(name="default")
    budgets = (None, PageBudget(tokens=128), PageBudget(128, 0.1), PageBudget(share=0.1))
    asked = [None, *(SparseAttention(scale, pages=b) for scale in (0.0, 8.0) for b in budgets)]
    salts = {salt_of(default, "mine", each) for each in asked}
    assert len(salts) == len(asked)


def test_priorities_are_bounded_by_the_tenant() -> None:
    assert [priority_of(ACME, asked) for asked in (None, 0, 5)] == [0, 0, 5]
    for asked in (-1, 6):
        with pytest.raises(RequestError, match="priority: this API key may use 0 to 5"):
            priority_of(ACME, asked)
    assert priority_of(TenantConfig(name="default"), -(1 << 31)) == -(1 << 31)

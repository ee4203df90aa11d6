"""Who asks: tenants by API key, and what the configuration lets each of them do."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from triptych.admission_config import DEFAULT_TENANT, TenantConfig
from triptych.config import RouterConfig
from triptych.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Tenants:
    """All tenants, the default one among them."""

    by_name: Mapping[str, TenantConfig]
    _by_digest: Mapping[bytes, str]  # SHA-256 of an API key

    @classmethod
    def read(cls, config: RouterConfig) -> Tenants:
        """Reads the key files. Raises ConfigError naming the tenant and the key."""
        if "" in config.api_keys:
            raise ConfigError("router.api_keys: an empty key would let everybody in")
        names = {DEFAULT_TENANT: TenantConfig(name=DEFAULT_TENANT)}
        names |= {tenant.name: tenant for tenant in config.tenants}
        owners = dict.fromkeys(map(_digest, config.api_keys), DEFAULT_TENANT)
        for number, tenant in enumerate(config.tenants):
            where = f"router.tenants[{number}]"
            for key in (*tenant.keys, *_keys_in(tenant.key_file, where)):
                owner = owners.setdefault(_digest(key), tenant.name)
                if owner != tenant.name:
                    raise ConfigError(f"{where}: {tenant.name!r} has a key of {owner!r}")
        return cls(names, owners)

    @property
    def keys_are_asked_for(self) -> bool:
        return bool(self._by_digest)

    def of_key(self, key: str) -> TenantConfig | None:
        """The tenant with this API key."""
        # Looked up by digest: what the time of that tells of a digest tells nothing of a key.
        name = self._by_digest.get(_digest(key))
        return None if name is None else self.by_name[name]

    @property
    def anybody(self) -> TenantConfig:
        """Who comes without a key where none is asked for."""
        return self.by_name[DEFAULT_TENANT]


def _keys_in(file: Path | None, where: str) -> list[str]:
    if file is None:
        return []
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}.key_file: cannot read {file}: {error}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise ConfigError(f"{where}.key_file: {file} holds no key; write one a line")
    return keys


def _digest(key: str) -> bytes:
    return hashlib.sha256(key.encode()).digest()

"""Everything that can go wrong because of the world, as one tree.

TriptychError
├── ConfigError            a config file, flag or environment variable is wrong; names the key
├── ModelError             a checkpoint cannot be loaded; names the file, tensor or architecture
├── RequestError           the caller's fault: becomes a 4xx that names the field
│   └── ContextLengthError the prompt does not fit the model's context
├── CapacityError          nobody can take the request now: 429 or 503, safe to retry
└── WorkerError            a worker broke its promise while it served a request: 502/503

Broken promises of our own code are `assert`s. Errors of the KV links live on the floor below, in
`transport.kv.base`.
"""

from __future__ import annotations


class TriptychError(Exception):
    """Base of all errors that a user can meet."""


class ConfigError(TriptychError):
    """A setting is unknown or invalid."""


class ModelError(TriptychError):
    """A checkpoint is missing, damaged or not supported."""


class RequestError(TriptychError):
    """A request that can never succeed as it stands."""

    def __init__(self, message: str, *, param: str | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.param = param
        self.code = code


class ContextLengthError(RequestError):
    """The prompt (plus at least one new token) is longer than the model's context."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message, param=param, code="context_length_exceeded")


class CapacityError(TriptychError):
    """No worker can take the request at the moment."""


class WorkerError(TriptychError):
    """A worker failed while it was serving a request."""

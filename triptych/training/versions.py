"""Which version of a drafter works, as seen by what is accepted of its drafts. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field

_PROBATION = 48  # drafts before a version is judged
_MEMORY = 256.0  # drafts that the mean follows
_BEARABLE = 0.8  # of what the version before brought: less is a fall


@dataclass(slots=True)
class Record:
    """Of one version."""

    drafts: int = 0
    accepted: float = 0.0  # per draft, a mean of the last ones

    def add(self, accepted: int) -> None:
        self.drafts += 1
        weight = max(1.0 / self.drafts, 1.0 / _MEMORY)
        self.accepted += weight * (accepted - self.accepted)


@dataclass(slots=True)
class VersionWatch:
    """The version in use and the one to go back to."""

    current: Record = field(default_factory=Record)
    before: Record | None = None  # None: there is nothing to go back to

    def add(self, accepted: int) -> None:
        self.current.add(accepted)

    def swapped(self) -> None:
        """A new version is in use."""
        self.before, self.current = self.current, Record()

    def rolled_back(self) -> None:
        """The one before is in use again, and it is the only one."""
        assert self.before is not None
        self.current, self.before = self.before, None

    @property
    def has_fallen(self) -> bool:
        """The new version has been tried enough and brings clearly less."""
        before = self.before
        if before is None or before.drafts < _PROBATION or self.current.drafts < _PROBATION:
            return False
        return self.current.accepted < _BEARABLE * before.accepted

    @property
    def is_settled(self) -> bool:
        """It has been tried enough for a next one to come."""
        return self.current.drafts >= _PROBATION

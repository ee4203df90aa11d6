"""A long English text that every Python brings."""

from __future__ import annotations

import sys


def fixed_text() -> tuple[str, str]:
    """(name, text): the language reference that comes with this Python, in English prose."""
    from pydoc_data.topics import topics

    version = ".".join(map(str, sys.version_info[:3]))
    return f"reference of Python {version}", "\n".join(topics[name] for name in sorted(topics))

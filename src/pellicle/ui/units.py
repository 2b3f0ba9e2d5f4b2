# SPDX-License-Identifier: Apache-2.0
"""Numbers as a person reads them: three digits are enough."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

_DECIMAL = ("", "k", "M", "G", "T", "P", "E", "Z")
_SPANS = ((86400, "d"), (3600, "h"), (60, "m"), (1, "s"))


def count(number: float) -> str:
    """7, 980, 1.2k, 34M."""
    amount, prefix = _scaled(number)
    return f"{amount}{prefix}"


def octets(number: float) -> str:
    """0 B, 1.2 kB, 34 MB: powers of ten, as links are measured."""
    amount, prefix = _scaled(number)
    return f"{amount} {prefix}B"


def span(seconds: float) -> str:
    """0.4s, 12s, 3m 20s, 2h 5m, 4d 1h: two units at most."""
    if seconds < 1:
        return f"{max(seconds, 0):.1f}s"
    rest, words = int(seconds), []
    for size, unit in _SPANS:
        amount, rest = divmod(rest, size)
        if amount:
            words.append(f"{amount}{unit}")
        elif words:
            break
    return " ".join(words[:2])


def clock(seconds: float, zone: tzinfo | None = None) -> str:
    """The wall clock of seconds since 1970, in `zone` or local time."""
    return datetime.fromtimestamp(seconds, UTC).astimezone(zone).strftime("%H:%M:%S")


def share(part: float, whole: float) -> str:
    """A percentage that says 100% and 0% only when it is so."""
    if not whole:
        return "-"
    percent = 100 * part / whole
    if 0 < percent < 0.1:
        return "<0.1%"
    if 99.9 < percent < 100:
        return ">99.9%"
    return f"{percent:.0f}%" if percent in (0, 100) else f"{percent:.1f}%"


def _scaled(number: float) -> tuple[str, str]:
    for prefix in _DECIMAL:
        if abs(number) < 999.5 or prefix == _DECIMAL[-1]:
            break
        number /= 1000
    digits = 1 if prefix and abs(number) < 9.95 else 0
    return f"{number:.{digits}f}", prefix

# SPDX-License-Identifier: Apache-2.0
"""Numbers as a person reads them: three digits are enough."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

_DECIMAL = ("", "k", "M", "G", "T", "P", "E", "Z")


def count(number: float) -> str:
    """7, 980, 1.2k, 34M."""
    amount, prefix = _scaled(number)
    return f"{amount}{prefix}"


def octets(number: float) -> str:
    """0 B, 1.2 kB, 34 MB: powers of ten, as links are measured."""
    amount, prefix = _scaled(number)
    return f"{amount} {prefix}B"


def clock(seconds: float, zone: tzinfo | None = None) -> str:
    """The wall clock of seconds since 1970, in `zone` or local time."""
    return datetime.fromtimestamp(seconds, UTC).astimezone(zone).strftime("%H:%M:%S")


def moment(seconds: float, zone: tzinfo | None = None) -> str:
    """Day and wall clock of seconds since 1970, in `zone` or local time."""
    return datetime.fromtimestamp(seconds, UTC).astimezone(zone).strftime("%Y-%m-%d %H:%M:%S")


def share(part: int, whole: int) -> str:
    """100 %, 99.98 %, 0 %: rounded down, so that only the whole is 100 %."""
    hundredths = part * 10_000 // whole if whole else 10_000
    percent, rest = divmod(hundredths, 100)
    return f"{percent}.{rest:02} %".replace(".00 %", " %")


def _scaled(number: float) -> tuple[str, str]:
    for prefix in _DECIMAL:
        if abs(number) < 999.5 or prefix == _DECIMAL[-1]:
            break
        number /= 1000
    digits = 1 if prefix and abs(number) < 9.95 else 0
    return f"{number:.{digits}f}", prefix

# SPDX-License-Identifier: Apache-2.0
"""The security associations of the bpf engine: maps `sa_in` and `sa_out`.

A row is written once and then belongs to the datapath, which counts in it. It is never
written again: the same key would start over at sequence number one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from struct import Struct

from pellicle.datapath.address import from_bytes, to_bytes
from pellicle.datapath.maps import Fields, MapTarget
from pellicle.facts import Address, Epoch, PairId, Spi
from pellicle.kernel.bpf import Object, Update
from pellicle.keys.rows import Direction, Sa, SaKey

_KEY_WORDS = Struct("<8I")
_SALT_WORD = Struct("<I")


@dataclass(frozen=True, slots=True)
class SaCount:
    """What the datapath has counted on one SA."""

    direction: Direction
    node: Address
    spi: Spi
    number: int
    pair: PairId
    local_epoch: Epoch
    peer_epoch: Epoch
    sequence: int
    """Last one sent, or the highest one received."""
    packets: int
    octets: int
    replayed: int
    auth_failed: int
    first_seen: int


class SaTarget:
    """Both maps as one target: what receives is put before what sends."""

    def __init__(self, bpf: Object) -> None:
        self._in: MapTarget[SaKey, tuple[Sa, SaCount]] = MapTarget(
            bpf.map("sa_in"),
            bpf.btf.struct("sa_in_key"),
            bpf.btf.struct("sa_in"),
            _in_key,
            lambda _, row: _in_row(row[0]),
            _in_from_fields,
            Update.NOEXIST,
        )
        self._out: MapTarget[SaKey, tuple[Sa, SaCount]] = MapTarget(
            bpf.map("sa_out"),
            bpf.btf.struct("sa_out_key"),
            bpf.btf.struct("sa_out"),
            lambda key: {"pair": key.pair, "number": key.number},
            lambda _, row: _out_row(row[0]),
            _out_from_fields,
            Update.NOEXIST,
        )

    def read(self) -> Mapping[SaKey, Sa]:
        return {key: row[0] for key, row in self._rows()}

    def counts(self) -> list[SaCount]:
        """Counters of all SAs, by peer, direction and number."""
        counts = (row[1] for _, row in self._rows())
        return sorted(counts, key=lambda c: (str(c.node), c.direction, c.pair, c.number))

    def put(self, rows: Mapping[SaKey, Sa]) -> Mapping[SaKey, OSError]:
        errors: dict[SaKey, OSError] = {}
        for target, direction in ((self._in, Direction.IN), (self._out, Direction.OUT)):
            part = {k: (sa, _nothing(sa)) for k, sa in rows.items() if k.direction is direction}
            errors.update(target.put(part))
        return errors

    def remove(self, keys: Collection[SaKey]) -> Mapping[SaKey, OSError]:
        outbound = [key for key in keys if key.direction is Direction.OUT]
        inbound = [key for key in keys if key.direction is Direction.IN]
        return {**self._out.remove(outbound), **self._in.remove(inbound)}

    def _rows(self) -> Iterable[tuple[SaKey, tuple[Sa, SaCount]]]:
        yield from self._in.read().items()
        yield from self._out.read().items()


def _nothing(sa: Sa) -> SaCount:
    return SaCount(
        sa.direction, sa.node, sa.spi, sa.number, sa.pair, sa.local_epoch, sa.peer_epoch,
        0, 0, 0, 0, 0, 0,
    )  # fmt: skip


def _in_key(key: SaKey) -> Fields:
    return {
        "source": {"bytes": to_bytes(key.source)},
        "destination": {"bytes": to_bytes(key.destination)},
        "spi": key.spi,
    }


def _in_row(sa: Sa) -> Fields:
    return {"number": sa.number, "pair": sa.pair, **_both(sa)}


def _out_row(sa: Sa) -> Fields:
    return {
        "sequence_limit": sa.sequence_limit,
        "spi": sa.spi,
        "source": {"bytes": to_bytes(sa.source)},
        "destination": {"bytes": to_bytes(sa.destination)},
        **_both(sa),
    }


def _both(sa: Sa) -> Fields:
    return {
        "key": list(_KEY_WORDS.unpack(sa.key)),
        "salt": _SALT_WORD.unpack(sa.salt)[0],
        "node": {"bytes": to_bytes(sa.node)},
        "local_epoch": sa.local_epoch,
        "peer_epoch": sa.peer_epoch,
    }


def _in_from_fields(key: Fields, row: Fields) -> tuple[SaKey, tuple[Sa, SaCount]]:
    sa = Sa(
        Direction.IN,
        PairId(row["pair"]),
        row["number"],
        Spi(key["spi"]),
        from_bytes(key["source"]["bytes"]),
        from_bytes(key["destination"]["bytes"]),
        from_bytes(row["node"]["bytes"]),
        Epoch(row["local_epoch"]),
        Epoch(row["peer_epoch"]),
        first_seen=row["first_seen"],
    )
    return sa.at, (sa, _count(sa, row["top"], row))


def _out_from_fields(key: Fields, row: Fields) -> tuple[SaKey, tuple[Sa, SaCount]]:
    sa = Sa(
        Direction.OUT,
        PairId(key["pair"]),
        key["number"],
        Spi(row["spi"]),
        from_bytes(row["source"]["bytes"]),
        from_bytes(row["destination"]["bytes"]),
        from_bytes(row["node"]["bytes"]),
        Epoch(row["local_epoch"]),
        Epoch(row["peer_epoch"]),
        row["sequence_limit"],
    )
    return sa.at, (sa, _count(sa, row["sequence"], row))


def _count(sa: Sa, sequence: int, row: Fields) -> SaCount:
    return SaCount(
        sa.direction,
        sa.node,
        sa.spi,
        sa.number,
        sa.pair,
        sa.local_epoch,
        sa.peer_epoch,
        sequence,
        row["packets"],
        row["bytes"],
        row.get("replayed", 0),
        row.get("auth_failed", 0),
        sa.first_seen,
    )

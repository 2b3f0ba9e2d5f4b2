# SPDX-License-Identifier: Apache-2.0
"""The security associations: maps `sa_in` and `sa_out`, and of the xfrm engine XFRM states.

A row is written once and then belongs to the datapath, which counts in it. It is never
written again: the same key would start over at sequence number one. The row of an SA of the
kernel's says whose it is and has no key; key and counts are in its state (states.py). SAs of many
peers may share one: then packets and bytes are counted in the row, and the map `sharers` leads from
the slot in a mark to the peer's outer address. What comes in by a key made by hand always has the
same place in `sa_in`, so that there the row of one SA takes the place of another's.
"""

from __future__ import annotations

import errno
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from struct import Struct

import structlog

from pellicle.datapath.address import from_bytes, to_bytes
from pellicle.datapath.maps import Fields, MapTarget
from pellicle.encryption.states import SLOT_SHIFT, States, key_of, mark_of, shared_of
from pellicle.encryption.traffic import Ends, SaReader, Totals, Traffic, of_state
from pellicle.facts import Address, Cipher, Context, Engine, Epoch, PairId, Spi
from pellicle.kernel.bpf import Object, Update
from pellicle.keys.rows import Direction, Sa, SaKey
from pellicle.wire.btf import Btf
from pellicle.wire.xfrm import StateCounts, StateKey

log = structlog.get_logger()

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
    engine: Engine
    cipher: Cipher


class SaTarget:
    """All SAs as one target: what receives is put before what sends.

    `states`: the kernel's part of the SAs of the xfrm engine; None where the kernel has no XFRM. An
    SA of that engine stands when its row and its state do, and its sharer if it has one. What is
    left of one of which a part is gone is of no use any more, as nothing is put twice: `read` takes
    it away.
    """

    def __init__(self, bpf: Object, states: States | None) -> None:
        words = Words.of(bpf.btf)
        self._in: MapTarget[SaKey, tuple[Sa, SaCount]] = MapTarget(
            bpf.map("sa_in"),
            bpf.btf.struct("sa_in_key"),
            bpf.btf.struct("sa_in"),
            _in_key,
            lambda _, row: {"number": row[0].number, "pair": row[0].pair, **words.both(row[0])},
            words.read_in,
            Update.NOEXIST,
        )
        self._out: MapTarget[SaKey, tuple[Sa, SaCount]] = MapTarget(
            bpf.map("sa_out"),
            bpf.btf.struct("sa_out_key"),
            bpf.btf.struct("sa_out"),
            lambda key: {"pair": key.pair, "number": key.number},
            lambda _, row: {**_out_row(row[0]), **words.both(row[0])},
            words.read_out,
            Update.NOEXIST,
        )
        self._sharers: MapTarget[int, Address] = MapTarget(
            bpf.map("sharers"),
            bpf.btf.struct("sharer_key"),
            bpf.btf.struct("sharer"),
            lambda slot: {"slot": slot},
            lambda _, outer: {"outer": {"bytes": to_bytes(outer)}},
            lambda key, row: (key["slot"], from_bytes(row["outer"]["bytes"])),
        )
        self._states = states
        self._reader = SaReader(bpf)
        self.totals = Totals(self._reader, self._read_states())
        self._kernels: dict[SaKey, StateKey] = {}
        """States of what stands; several may have one together."""
        self._slots: dict[SaKey, int] = {}
        """Of those that do."""
        self._replaced: set[SaKey] = set()
        """Of those: their rows are others' by now."""

    def read(self) -> Mapping[SaKey, Sa]:
        rows, states, sharers = dict(self._rows()), self._read_states(), self._sharers.read()
        kernels = {key: sa for key, (sa, _) in rows.items() if _is_kernels(sa)}
        gone = {
            key
            for key, sa in kernels.items()
            if key_of(sa) not in states or (sa.shared and sharers.get(sa.slot) != outer_of(sa))
        }
        self._kernels = {key: key_of(sa) for key, sa in kernels.items() if key not in gone}
        orphans = states.keys() - self._kernels.values()
        self._slots = {key: kernels[key].slot for key in self._kernels if kernels[key].shared}
        if gone or orphans:
            log.warning("parts of SAs are taken away", rows=len(gone), states=len(orphans))
            self._remove(gone)
            if self._states:
                self._states.remove(orphans)
        self._sharers.remove(sharers.keys() - self._slots.values())
        return {key: row[0] for key, row in rows.items() if key not in gone}

    def counts(self) -> list[SaCount]:
        """Counters of all SAs, by peer, direction and number."""
        states = self._read_states()
        counts = []
        for sa, count in (row for _, row in self._rows()):
            if not _is_kernels(sa):
                counts.append(count)
            elif (of_kernel := states.get(key_of(sa))) is not None:
                if not sa.shared:
                    counts.append(_of_kernel(count, of_kernel))
                elif sa.direction is Direction.OUT:
                    counts.append(replace(count, sequence=of_kernel.sequence))
                else:
                    counts.append(count)
        return sorted(counts, key=lambda c: (str(c.node), c.direction, c.pair, c.number))

    def put(self, rows: Mapping[SaKey, Sa]) -> Mapping[SaKey, OSError]:
        taken = self._taken(rows)
        fresh = [key for key in rows if key not in taken]
        errors: dict[SaKey, OSError] = {}
        for target, keys in (
            (self._in, [key for key in fresh if _receives(key)]),
            (replace(self._in, flags=Update.ANY), taken),
            (self._out, [key for key in fresh if not _receives(key)]),
        ):
            part = {key: rows[key] for key in keys}
            errors.update(self._put_states(part))
            part = {key: sa for key, sa in part.items() if key not in errors}
            errors.update(self._put_sharers(part))
            part = {key: sa for key, sa in part.items() if key not in errors}
            failed = target.put({key: (sa, _nothing(sa)) for key, sa in part.items()})
            errors.update(failed)
            self._remove_states([key for key in failed if key in self._kernels])
        self._replaced.update(old for key, old in taken.items() if key not in errors)
        return errors

    def _taken(self, sas: Mapping[SaKey, Sa]) -> Mapping[SaKey, SaKey]:
        """Who has the places of keys made by hand that these are to have: their rows are replaced
        at once, so that they receive all the while. No replay window begins anew by that, since
        such have none (RFC 4303 §3.4.3).
        """
        wanted = {_place(key): key for key in sas if sas[key].is_manual and _receives(key)}
        if not wanted:
            return {}
        old = (key for key in self._kernels if _receives(key) and key not in self._replaced)
        return {wanted[_place(key)]: key for key in old if _place(key) in wanted}

    def remove(self, keys: Collection[SaKey]) -> Mapping[SaKey, OSError]:
        """What sends first; of each the row, which leads to the state, and then the state."""
        with self.totals.retiring() as retire:
            last = self._last(key for key in keys if key not in self._replaced)
            shared = {key: self._slots[key] for key in keys if key in self._slots}
            errors = self._remove(keys)
            gone = [key for key in keys if key not in errors]
            counts: dict[StateKey, StateCounts] = {}
            states = {key: self._kernels[key] for key in gone if key in self._kernels}
            errors |= self._remove_states(gone, counts)
            self._remove_sharers([key for key in shared if key not in errors])
            for key in last.keys() - errors.keys():
                ends, traffic = last[key]
                is_own = key in states and key not in shared
                of_kernel = counts.get(states[key]) if is_own else None
                retire(ends, of_state(of_kernel) if of_kernel else traffic)
        self._replaced.difference_update(key for key in keys if key not in errors)
        return errors

    def _last(self, keys: Iterable[SaKey]) -> dict[SaKey, tuple[Ends, Traffic]]:
        """What the rows have counted that are about to go."""
        targets = {Direction.IN: self._in, Direction.OUT: self._out}
        raw = ((key, targets[key.direction].raw(key)) for key in keys)
        return {key: self._reader.row(key.direction, row) for key, row in raw if row is not None}

    def _remove(self, keys: Collection[SaKey]) -> dict[SaKey, OSError]:
        outbound = [key for key in keys if not _receives(key)]
        inbound = [key for key in keys if _receives(key) and key not in self._replaced]
        return {**self._out.remove(outbound), **self._in.remove(inbound)}

    def _put_states(self, sas: Mapping[SaKey, Sa]) -> dict[SaKey, OSError]:
        wanted = {key: key_of(sa) for key, sa in sas.items() if _is_kernels(sa)}
        if not wanted:
            return {}
        if self._states is None:
            lack = OSError(errno.EPROTONOSUPPORT, "this kernel has no XFRM")
            return dict.fromkeys(wanted, lack)
        standing = set(self._kernels.values())
        fresh = {state: sas[key] for key, state in wanted.items() if state not in standing}
        errors = self._states.put(fresh.values())
        self._kernels |= {key: state for key, state in wanted.items() if state not in errors}
        return {key: errors[state] for key, state in wanted.items() if state in errors}

    def _put_sharers(self, sas: Mapping[SaKey, Sa]) -> dict[SaKey, OSError]:
        wanted = {sa.slot: key for key, sa in sas.items() if sa.shared}
        errors = self._sharers.put({slot: outer_of(sas[key]) for slot, key in wanted.items()})
        self._remove_states([wanted[slot] for slot in errors])
        self._slots |= {key: slot for slot, key in wanted.items() if slot not in errors}
        return {wanted[slot]: error for slot, error in errors.items()}

    def _remove_sharers(self, keys: Iterable[SaKey]) -> None:
        """One that cannot be removed leads nobody anywhere, and `read` tries again."""
        self._sharers.remove([self._slots.pop(key) for key in keys])

    def _remove_states(
        self, keys: Collection[SaKey], last: dict[StateKey, StateCounts] | None = None
    ) -> dict[SaKey, OSError]:
        ours = {key: self._kernels.pop(key) for key in keys if key in self._kernels}
        if not ours or self._states is None:
            return {}
        unused = set(ours.values()) - set(self._kernels.values())
        errors = self._states.remove(unused, last)
        failed = {key: state for key, state in ours.items() if state in errors}
        self._kernels |= failed
        return {key: errors[state] for key, state in failed.items()}

    def _read_states(self) -> Mapping[StateKey, StateCounts]:
        return self._states.read() if self._states else {}

    def _rows(self) -> Iterable[tuple[SaKey, tuple[Sa, SaCount]]]:
        yield from self._in.read().items()
        yield from self._out.read().items()


def outer_of(sa: Sa) -> Address:
    """The peer's address outside."""
    return sa.source if sa.direction is Direction.IN else sa.destination


def _is_kernels(sa: Sa) -> bool:
    return sa.engine is Engine.XFRM


def _nothing(sa: Sa) -> SaCount:
    return SaCount(
        sa.direction, sa.node, sa.spi, sa.number, sa.pair, sa.local_epoch, sa.peer_epoch,
        0, 0, 0, 0, 0, 0, sa.engine, sa.cipher,
    )  # fmt: skip


def _receives(key: SaKey) -> bool:
    return key.direction is Direction.IN


def _place(key: SaKey) -> tuple[Address, Address, Spi]:
    """In the map `sa_in`."""
    return key.source, key.destination, key.spi


def _in_key(key: SaKey) -> Fields:
    return {
        "source": {"bytes": to_bytes(key.source)},
        "destination": {"bytes": to_bytes(key.destination)},
        "spi": key.spi,
    }


def _out_row(sa: Sa) -> Fields:
    return {
        "sequence_limit": sa.sequence_limit,
        "spi": sa.spi,
        "source": {"bytes": to_bytes(sa.source)},
        "destination": {"bytes": to_bytes(sa.destination)},
    }


@dataclass(frozen=True, slots=True)
class Words:
    """Rows with the enums that C has numbers for."""

    engines: Mapping[int, Engine]
    ciphers: Mapping[int, Cipher]
    numbers: Mapping[Engine | Cipher, int]

    @classmethod
    def of(cls, btf: Btf) -> Words:
        engines = {n: Engine(_word(name, "ENGINE_")) for name, n in btf.enum("engine").items()}
        ciphers = {n: Cipher(_word(name, "CIPHER_")) for name, n in btf.enum("cipher").items()}
        numbers: dict[Engine | Cipher, int] = {cipher: n for n, cipher in ciphers.items()}
        numbers |= {engine: n for n, engine in engines.items()}
        return cls(engines, ciphers, numbers)

    def both(self, sa: Sa) -> Fields:
        """What rows of both directions have."""
        ours = not _is_kernels(sa)
        return {
            "key": list(_KEY_WORDS.unpack(sa.key)) if ours else [0] * 8,
            "salt": _SALT_WORD.unpack(sa.salt)[0] if ours else 0,
            "node": {"bytes": to_bytes(sa.node)},
            "local_epoch": sa.local_epoch,
            "peer_epoch": sa.peer_epoch,
            "engine": self.numbers[sa.engine],
            "cipher": self.numbers[sa.cipher],
            "mark": mark_of(sa),
            "context": sa.context,
        }

    def read_in(self, key: Fields, row: Fields) -> tuple[SaKey, tuple[Sa, SaCount]]:
        sa = Sa(
            Direction.IN,
            PairId(row["pair"]),
            row["number"],
            Spi(key["spi"]),
            from_bytes(key["source"]["bytes"]),
            from_bytes(key["destination"]["bytes"]),
            first_seen=row["first_seen"],
            **self._both(row),
        )
        return sa.at, (sa, _count(sa, row["top"], row))

    def read_out(self, key: Fields, row: Fields) -> tuple[SaKey, tuple[Sa, SaCount]]:
        sa = Sa(
            Direction.OUT,
            PairId(key["pair"]),
            key["number"],
            Spi(row["spi"]),
            from_bytes(row["source"]["bytes"]),
            from_bytes(row["destination"]["bytes"]),
            sequence_limit=row["sequence_limit"],
            **self._both(row),
        )
        return sa.at, (sa, _count(sa, row["sequence"], row))

    def _both(self, row: Fields) -> Fields:
        return {
            "node": from_bytes(row["node"]["bytes"]),
            "local_epoch": Epoch(row["local_epoch"]),
            "peer_epoch": Epoch(row["peer_epoch"]),
            "engine": self.engines[row["engine"]],
            "cipher": self.ciphers[row["cipher"]],
            "slot": row["mark"] >> SLOT_SHIFT,
            "shared": shared_of(row["mark"]),
            "context": Context(row["context"]),
        }


def _word(name: str, prefix: str) -> str:
    """CIPHER_AES_128_GCM -> aes-128-gcm, as the facts call it."""
    return name.removeprefix(prefix).lower().replace("_", "-")


def _of_kernel(count: SaCount, state: StateCounts) -> SaCount:
    """The kernel's counts in place of the row's."""
    return replace(
        count,
        sequence=state.sequence,
        packets=state.packets,
        octets=state.octets,
        replayed=state.replayed + state.replay_window_errors,
        auth_failed=state.integrity_failed,
    )


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
        sa.engine,
        sa.cipher,
    )

# SPDX-License-Identifier: Apache-2.0
"""A stranger on the wire between the nodes: hears every packet once, keeps count, finds secrets.

    with Sniffer(markers=(b"secret",), write=Path("wire.pcap")) as sniffer:
        …traffic…
        sniffer.settle()
        assert not sniffer.marks()

It sits in the wire's namespace with its own socket (`ring`) and a thread of its own. A sniffer
that hears nothing proves nothing: `settle` sends a packet through the same ring and waits for
it, and `lost` says how many frames it missed.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import threading
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Self

from pellicle.kernel import netns
from pellicle.lab.frames import Header, Kind, describe, header_key, read_esp, read_header
from pellicle.lab.patience import patient
from pellicle.lab.pcap import Pcap
from pellicle.lab.ring import Block, Ring
from pellicle.lab.topology import WIRE

LOOPBACK: Final = 1
"""The index of lo in every namespace."""
BIN_NS: Final = 100_000_000
"""Of the time line."""
SETTLE_SECONDS: Final = 10.0
MOST_LEAKS: Final = 50
SIOCGIFNAME: Final = 0x8910
_TOKEN = struct.Struct("=16sQ")
_IFREQ = struct.Struct("16si20x")


class WireFlow(NamedTuple):
    """What the wire can tell apart: nodes, family, kind, protocol."""

    source: str
    """The node whose uplink it left."""
    destination: str
    family: int
    kind: Kind
    protocol: str


@dataclass(frozen=True, slots=True)
class Count:
    packets: int = 0
    bytes: int = 0

    def __add__(self, other: Count) -> Count:
        return Count(self.packets + other.packets, self.bytes + other.bytes)

    def __sub__(self, other: Count) -> Count:
        return Count(self.packets - other.packets, self.bytes - other.bytes)


@dataclass(frozen=True, slots=True)
class Seen:
    """One frame, for whoever watches live."""

    at: int
    flow: WireFlow
    length: int
    frame: bytes


@dataclass(frozen=True, slots=True)
class Reuse:
    """One number under one SPI that two different packets carried."""

    source: str
    destination: str
    spi: int
    field: str
    """IV, or sequence number: an SA that began again. The kernel hides that from the IV, which it
    makes of the sequence number and a salt of the SA's own (Linux: crypto/seqiv.c)."""
    number: int


@dataclass(slots=True)
class _Line:
    """What is counted for one header on one device."""

    flow: WireFlow
    header: Header
    is_wanted: bool
    packets: int = 0
    bytes: int = 0


@dataclass(slots=True)
class _Used:
    """IVs and sequence numbers seen under one SPI, and a digest of what each protected."""

    ivs: array[int] = field(default_factory=lambda: array("Q"))
    sequences: array[int] = field(default_factory=lambda: array("I"))
    digests: array[int] = field(default_factory=lambda: array("I"))


class Sniffer:
    """Hears all frames that enter `namespace`, from `__enter__` to `close`."""

    def __init__(
        self,
        *,
        markers: Sequence[bytes] = (),
        nonces: bool = False,
        write: Path | None = None,
        wanted: Callable[[WireFlow, Header], bool] | None = None,
        watch: Callable[[Seen], None] | None = None,
        namespace: str = WIRE,
    ) -> None:
        """`wanted` chooses what `write` and `watch` get; counting and searching see everything.

        `watch` is called from the sniffer's thread.
        """
        self.markers = tuple(markers)
        self._wanted = wanted or (lambda _flow, _header: True)
        self._watch = watch
        self._nonces = nonces
        self._lines: dict[tuple[int, bytes], _Line] = {}
        self._marks: Counter[tuple[WireFlow, bytes]] = Counter()
        self._used: dict[tuple[str, str, int], _Used] = {}
        self._timeline: Counter[tuple[int, Kind]] = Counter()
        self._leaks: list[str] = []
        self._heard_token = 0
        self._news = threading.Condition()
        self._failed: BaseException | None = None
        with ExitStack() as opened:
            self._pcap = opened.enter_context(Pcap(write)) if write else None
            with netns.inside(namespace):
                self._ring = opened.enter_context(Ring())
                self._echo = opened.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
            self._echo.bind(("127.0.0.1", 0))
            self._opened = opened.pop_all()
        self._stop = os.eventfd(0)
        self._thread = threading.Thread(target=self._listen, name="sniffer", daemon=True)
        self._lost = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop hearing; everything counted so far stays readable."""
        if self._stop < 0:
            return
        os.eventfd_write(self._stop, 1)
        if self._thread.is_alive():
            self._thread.join()
        self._lost = self._ring.lost()
        self._opened.close()
        os.close(self._stop)
        self._stop = -1

    def settle(self) -> None:
        """Return when every frame that reached the wire before this call has been counted."""
        token = int.from_bytes(os.urandom(8))
        self._echo.sendto(_TOKEN.pack(b"pellicle-sniffer", token), self._echo.getsockname())
        self._echo.recv(_TOKEN.size)
        with self._news:
            heard = self._news.wait_for(
                lambda: self._heard_token == token or self._failed, patient(SETTLE_SECONDS)
            )
            if self._failed:
                raise RuntimeError("the sniffer broke") from self._failed
            if not heard:
                raise TimeoutError("the sniffer is deaf: it did not even hear its own packet")

    def counts(self) -> Mapping[WireFlow, Count]:
        """What has passed since the beginning."""
        with self._news:
            sums: dict[WireFlow, Count] = {}
            for line in self._lines.values():
                sums[line.flow] = sums.get(line.flow, Count()) + Count(line.packets, line.bytes)
            return sums

    def marks(self) -> Mapping[tuple[WireFlow, bytes], int]:
        """In how many frames of each flow each marker was readable."""
        with self._news:
            return dict(self._marks)

    def leaks(self) -> Sequence[str]:
        """The first frames in which a cluster address showed, in words."""
        with self._news:
            return tuple(self._leaks)

    def timeline(self) -> Mapping[tuple[int, Kind], int]:
        """Packets of each kind in each BIN_NS since 1970."""
        with self._news:
            return dict(self._timeline)

    def ivs(self) -> Mapping[tuple[str, str, int], Sequence[int]]:
        """(outer source, destination, SPI) -> the IVs as the wire had them (`nonces` only)."""
        with self._news:
            return {key: tuple(used.ivs) for key, used in self._used.items()}

    def reuses(self) -> Sequence[Reuse]:
        """Every nonce that protected two different packets; the same packet twice is none."""
        with self._news:
            return tuple(
                Reuse(*key, *found)
                for key, used in self._used.items()
                for found in _found_twice(used)
            )

    def lost(self) -> int:
        """Frames that were not heard because the ring was full."""
        return self._lost if self._stop < 0 else self._ring.lost()

    def _listen(self) -> None:
        poll = select.poll()
        poll.register(self._ring, select.POLLIN)
        poll.register(self._stop, select.POLLIN)
        try:
            while True:
                events = poll.poll()
                while (block := self._ring.take()) is not None:
                    self._read(block)
                if any(descriptor == self._stop for descriptor, _ in events):
                    return
        except BaseException as error:
            with self._news:
                self._failed = error
                self._news.notify_all()
            raise

    def _read(self, block: Block) -> None:
        keep: list[tuple[int, int, bytes]] = []
        watched: list[Seen] = []
        with self._news:
            for at, ifindex, length, frame in block.frames():
                if ifindex == LOOPBACK:
                    self._hear_token(frame)
                    continue
                line = self._count(at, ifindex, length, frame)
                if line.is_wanted:
                    keep.append((at, length, frame))
                    if self._watch:
                        watched.append(Seen(at, line.flow, length, frame))
            if any(marker in block.data for marker in self.markers):
                self._search(block)
        if self._pcap:
            self._pcap.write(keep)
        if self._watch:
            for seen in watched:
                self._watch(seen)

    def _count(self, at: int, ifindex: int, length: int, frame: bytes) -> _Line:
        key = (ifindex, header_key(frame))
        line = self._lines.get(key) or self._new_line(key, ifindex, frame)
        line.packets += 1
        line.bytes += length
        kind = line.flow.kind
        self._timeline[at // BIN_NS, kind] += 1
        if kind is Kind.ESP and self._nonces:
            self._note_iv(line.header, frame)
        elif kind is Kind.CLEAR and len(self._leaks) < MOST_LEAKS:
            self._leaks.append(f"{line.flow.source}: {describe(frame, length)}")
        return line

    def _new_line(self, key: tuple[int, bytes], ifindex: int, frame: bytes) -> _Line:
        header = read_header(frame)
        source = self._device(ifindex)
        flow = WireFlow(source, header.to, header.family, header.kind, header.protocol)
        line = self._lines[key] = _Line(flow, header, self._wanted(flow, header))
        return line

    def _note_iv(self, header: Header, frame: bytes) -> None:
        esp = read_esp(frame, header.start)
        if esp is None:
            return
        key = (str(header.source), str(header.destination), esp.spi)
        used = self._used.get(key)
        if used is None:
            used = self._used[key] = _Used()
        used.ivs.append(esp.iv)
        used.sequences.append(esp.sequence)
        used.digests.append(zlib.crc32(frame[header.start :]))

    def _search(self, block: Block) -> None:
        for _, ifindex, _, frame in block.frames():
            for marker in self.markers:
                if ifindex != LOOPBACK and marker in frame:
                    self._marks[self._lines[ifindex, header_key(frame)].flow, marker] += 1

    def _hear_token(self, frame: bytes) -> None:
        if b"pellicle-sniffer" in frame:
            _, self._heard_token = _TOKEN.unpack_from(frame, len(frame) - _TOKEN.size)
            self._news.notify_all()

    def _device(self, ifindex: int) -> str:
        """The wire's end is called like the node behind it."""
        try:
            answer = fcntl.ioctl(self._echo, SIOCGIFNAME, _IFREQ.pack(b"", ifindex))
        except OSError:
            return f"device {ifindex}"  # it left before its last frames were read
        return answer[:16].split(b"\0")[0].decode()


def _found_twice(used: _Used) -> Iterator[tuple[str, int]]:
    """A sequence number counts only where the IVs were others: else it says the same again."""
    ivs = _reused(used.ivs, used.digests)
    yield from (("IV", iv) for iv in ivs)
    if not ivs:
        again = _reused(used.sequences, used.digests)
        yield from (("sequence number", number) for number in again)


def _reused(numbers: Sequence[int], digests: Sequence[int]) -> Sequence[int]:
    protected: dict[int, int] = {}
    reused: dict[int, None] = {}
    for number, digest in zip(numbers, digests, strict=True):
        if protected.setdefault(number, digest) != digest:
            reused[number] = None
    return tuple(reused)

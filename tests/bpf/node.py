# SPDX-License-Identifier: Apache-2.0
"""One node's datapath with maps of its own: rows go in, packets go through, counts come out.

    node.put_peer("10.244.2.2", node=PEER)
    seen = node.run("from_pod", frame)
    assert seen.reasons == ("DROP_NO_KEY",)

The programs run for real, by BPF_PROG_TEST_RUN on loopback, whose MAC address is all zero: frames
to another one would count as some other machine's. A redirect shows as its return code; the frame
is returned as the program left it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, ip_address, ip_network
from pathlib import Path
from typing import Any

from build_bpf import ROOT, compile_bpf
from pellicle.kernel.bpf import Object, RingBuffer, SkbContext
from tests.bpf.esp import Keys

OK, SHOT, REDIRECT = 0, 2, 7
NEXT = -1
"""TC_ACT_UNSPEC: the next program decides."""
BPF, XFRM = 1, 2
"""`enum engine`."""
SEAL = 0x5EA1_0123_4567_89AB
"""to_net's."""
LOOPBACK = 1
NEVER = 0


def addr(text: str) -> bytes:
    """struct addr: IPv4 as ::ffff:a.b.c.d."""
    address = ip_address(text)
    return b"\0" * 10 + b"\xff\xff" + address.packed if address.version == 4 else address.packed


def text_of(raw: bytes) -> str:
    """The address in a struct addr."""
    return str(ip_address(raw[12:] if raw[:12] == addr("0.0.0.0")[:12] else raw))


def can_run(frame: bytes) -> bool:
    """Whether the kernel takes the frame for a test run: IP headers must not be cut short.

    (A VLAN tag in front of them hides that.)
    """
    least = {b"\x08\x00": 20, b"\x86\xdd": 40}.get(frame[12:14], 1)
    return len(frame) >= 14 + least


@dataclass(frozen=True)
class Seen:
    """What came of one packet: the program's answer, the frame, and what was counted."""

    action: int
    frame: bytes
    mark: int
    reasons: tuple[str, ...]
    """One for each packet counted."""
    size: int
    """Bytes counted."""

    @property
    def reason(self) -> str:
        """The only one; '' when nothing was counted."""
        assert len(self.reasons) <= 1, f"{len(self.reasons)} packets: {set(self.reasons)}"
        return self.reasons[0] if self.reasons else ""


class Node:
    """A loaded pellicle.bpf.o."""

    def __init__(self, loaded: Object) -> None:
        self.object = loaded
        btf = loaded.btf
        reasons: Mapping[str, int] = btf.enum("reason")
        names = {n: name for name, n in reasons.items() if name != "DROP_FIRST"}
        # Behind all of them: the same, let through by monitor mode.
        count = reasons["REASON_COUNT"]
        self.reason_names = names | {n + count: f"AUDITED_{name}" for n, name in names.items()}
        self.events = RingBuffer(loaded.map("events"))
        self.event = btf.struct("event")
        self.kinds = {number: name for name, number in btf.enum("event_kind").items()}
        self._counted = self._counts()

    def close(self) -> None:
        self.events.close()
        self.object.close()

    # --- rows ------------------------------------------------------------------------------------

    def put(self, name: str, key: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        """Writes one row of any map."""
        spec = self.object.btf.maps[name]
        self.object.map(name).update(spec.key.write(key), spec.value.write(row))  # type: ignore[union-attr]

    def row(self, name: str, key: Mapping[str, Any] | bytes) -> dict[str, Any]:
        """Reads one row of any map."""
        spec = self.object.btf.maps[name]
        raw = self.object.map(name).lookup(spec.key.write(key))  # type: ignore[union-attr]
        assert raw is not None, f"no row {key} in {name}"
        return spec.value.read(raw)  # type: ignore[union-attr,no-any-return]

    def rows(self, name: str) -> list[tuple[Any, Any]]:
        """Every row of any map."""
        spec = self.object.btf.maps[name]
        pairs = self.object.map(name).items()
        return [(spec.key.read(k), spec.value.read(v)) for k, v in pairs]  # type: ignore[union-attr]

    def clear(self, *names: str) -> None:
        """Empties maps."""
        for name in names:
            table = self.object.map(name)
            table.delete_batch(table.keys())

    def put_peer(self, address: str, *, node: str, flags: int = 0, identity: int = 0) -> None:
        row = {"identity": identity, "flags": flags, "node": addr(node)}
        self.put("ipcache", {"bytes": addr(address)}, row)

    def put_cidr(self, text: str, flags: int = 0) -> None:
        network = ip_network(text)
        offset = 96 if isinstance(network.network_address, IPv4Address) else 0
        base = addr(str(network.network_address))
        self.put(
            "cluster_cidrs",
            {"prefixlen": network.prefixlen + offset, "addr": base},
            {"flags": flags},
        )

    def put_endpoint(self, address: str, *, ifindex: int = LOOPBACK, **row: Any) -> None:
        self.put("endpoints", {"bytes": addr(address)}, {"ifindex": ifindex, **row})

    def put_door(self, ifindex: int) -> None:
        """The device that door_xfrm hands packets over to; 0: there is none."""
        self.object.map("doors").update(struct.pack("<I", 0), struct.pack("<I", ifindex))

    def put_sharer(self, slot: int, outer: str) -> None:
        self.put("sharers", {"slot": slot}, {"outer": {"bytes": addr(outer)}})

    def put_exempt(self, protocol: int, port: int, rule: int) -> None:
        self.put("exempt", {"protocol": protocol, "port": port}, {"rule": rule})

    def put_encrypt(self, node: str, pair: int, engine: int = BPF, sas: int = 4) -> None:
        row = {"pair": pair, "engine": engine, "sa_mask": sas - 1}
        self.put("encrypt", {"node": addr(node)}, row)

    def put_sa_out(
        self, keys: Keys, *, pair: int, number: int, source: str, destination: str, node: str,
        **more: Any,
    ) -> None:  # fmt: skip
        row = {
            "sequence_limit": 1 << 40, "local_epoch": 5, "peer_epoch": 6, "node": addr(node),
            "source": addr(source), "destination": addr(destination), **_sa(keys), **more,
        }  # fmt: skip
        self.put("sa_out", {"pair": pair, "number": number}, row)

    def put_sa_in(
        self, keys: Keys, *, pair: int, number: int, source: str, destination: str, node: str,
        **more: Any,
    ) -> None:  # fmt: skip
        row = {
            "pair": pair, "number": number, "node": addr(node), "local_epoch": 5, "peer_epoch": 6,
            **_sa(keys), **more,
        }  # fmt: skip
        del row["spi"]
        self.put("sa_in", self.sa_in_key(keys, source, destination), row)

    def sa_in_key(self, keys: Keys, source: str, destination: str) -> dict[str, Any]:
        return {"source": addr(source), "destination": addr(destination), "spi": keys.spi}

    # --- packets ---------------------------------------------------------------------------------

    def run(self, program: str, frame: bytes, **context: Any) -> Seen:
        """One packet through one program, and through backstop if that is left to decide."""
        ctx = SkbContext(**context)
        done = self.object.program(program).test_run(frame, ctx=ctx.pack())
        after = SkbContext.unpack(done.ctx)
        if done.retval == NEXT:
            sealed = replace(ctx, mark=after.mark, cb=after.cb)
            done = self.object.program("backstop").test_run(done.data, ctx=sealed.pack())
            after = SkbContext.unpack(done.ctx)
        return Seen(done.retval, done.data, after.mark, *self.counted())

    def counted(self) -> tuple[tuple[str, ...], int]:
        """Since the last packet: a reason for each packet counted, and all their bytes."""
        before, self._counted = self._counted, self._counts()
        reasons, size = [], 0
        for number, (packets, total) in self._counted.items():
            packets_before, total_before = before[number]
            reasons += [self.reason_names[number]] * (packets - packets_before)
            size += total - total_before
        return tuple(reasons), size

    def forget(self) -> None:
        """What was counted or reported until now belongs to nobody's packet."""
        self._counted = self._counts()
        self.events.consume()

    def seen_events(self) -> list[dict[str, Any]]:
        """The events since the last call; `kind` is its word."""
        rows = [self.event.unpack(raw) for raw in self.events.consume()]
        return [{**row, "kind": self.kinds[row["kind"]]} for row in rows]

    def _counts(self) -> dict[int, tuple[int, int]]:
        summed = self.object.map("counts").values_summed()
        return {struct.unpack("<I", key)[0]: (row[0], row[1]) for key, row in summed.items()}


def _sa(keys: Keys) -> dict[str, Any]:
    return {
        "key": list(struct.unpack("<8I", keys.key)),
        "salt": int.from_bytes(keys.salt, "little"),
        "spi": keys.spi,
        "engine": BPF,
    }


@contextmanager
def loaded_node(
    scratch: Path, *, self4: str = "192.0.2.1", self6: str = "2001:db8::1",
    sources: Path = ROOT / "bpf", **config: Any,
) -> Iterator[Node]:  # fmt: skip
    """Compiles and loads the datapath, its addresses and configuration set; the uplink is lo."""
    path = compile_bpf(sources / "pellicle.bpf.c", scratch / "pellicle.bpf.o", include=(sources,))
    words = {
        "encrypt": 1,
        "nodes": 1,
        "uplink_ifindex": LOOPBACK,
        "flow_interval_ms": 5000,
        "seal": SEAL,
        **config,
    }
    layout = _config_layout(path)
    rodata = {"config": layout.pack(self4=addr(self4), self6=addr(self6), **words)}
    with Object.load(path, rodata=rodata) as loaded:
        node = Node(loaded)
        try:
            yield node
        finally:
            node.events.close()


def _config_layout(path: Path) -> Any:
    from pellicle.wire.btf import Btf

    return Btf.parse(path.read_bytes()).struct("config")

# SPDX-License-Identifier: Apache-2.0
"""What an agent that knows thousands of peers may be asked about, without the peers.

Programs and maps are real and loaded; each peer has four SAs a direction, all rows of the tables
are there, and nothing runs in between.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address
from typing import Any, Final

from pellicle.config import load
from pellicle.datapath import programs
from pellicle.datapath.programs import Words
from pellicle.encryption.engine import Choice
from pellicle.encryption.sas import SaTarget
from pellicle.events import Events
from pellicle.facts import Cipher, Engine, Epoch, Node, NodeName, PairId, Spi
from pellicle.flows.decode import Decoder
from pellicle.flows.history import History
from pellicle.kernel.bpf import Object
from pellicle.keys.pairing import Direction, PeerKeys, PeerState, Sa, SaKey
from pellicle.sight import Sight
from pellicle.table import Reconciler
from pellicle.tables import Tables
from pellicle.wire.btf import Btf

SAS: Final = 4
OWN: Final = IPv4Address("192.0.2.1")
LOOPBACK: Final = 1


@contextmanager
def loaded(flow_interval_ms: int = 5000) -> Iterator[Object]:
    """The datapath, with maps of its own."""
    path = programs.object_path()
    words = Words(True, True, False, LOOPBACK, flow_interval_ms, (OWN,))
    rodata = {"config": programs.pack_words(Btf.parse(path.read_bytes()), words)}
    with Object.load(path, rodata=rodata) as bpf:
        yield bpf


def sas_of(peer: int) -> dict[SaKey, Sa]:
    """Those of one pair."""
    there, rows = address_of(peer), {}
    for direction in Direction:
        source, destination = (there, OWN) if direction is Direction.IN else (OWN, there)
        for number in range(SAS):
            sa = Sa(
                direction, PairId(peer), number, Spi(0x1000 + peer * SAS + number), source,
                destination, there, Epoch(1), Epoch(1), 1 << 40, Engine.BPF,
                Cipher.CHACHA20_POLY1305, 0, key=os.urandom(32), salt=os.urandom(4),
            )  # fmt: skip
            rows[sa.at] = sa
    return rows


def address_of(peer: int) -> IPv4Address:
    return IPv4Address(0xC0A80000 + peer)


def sight_of(bpf: Object, peers: int) -> Sight:
    """Everything is as it should be."""
    tables, names = Tables(), {peer: NodeName(f"node-{peer:05}") for peer in range(1, peers + 1)}
    target = SaTarget(bpf, None)
    sas = {key: sa for peer in names for key, sa in sas_of(peer).items()}
    assert not target.put(sas)
    tables.sas.replace(sas)
    tables.sas_up.replace(sas)
    tables.nodes.replace({n: Node(n, (address_of(peer),), ()) for peer, n in names.items()})
    tables.peers.replace({n: keys_of(n, peer) for peer, n in names.items()})
    flags = {"enable_encrypt_l3": True, "cluster_cidrs": ["10.244.0.0/16"]}
    choice = Choice(Engine.BPF, (Cipher.CHACHA20_POLY1305,), "asked for")
    reconcilers: list[Reconciler[Any, Any]] = [Reconciler(tables.sas, target, tables.sas_up)]
    programs_target: Any = _Attached()
    return Sight(
        load(flags, {}, None, "n0"), "lo", choice, 1500, bpf, Decoder.of(bpf.btf, {}),
        programs_target, target, None, None, tables.peers, tables.nodes, tables.endpoints,
        tables.names, tables.links, tuple, reconcilers, History(), tuple,
    )  # fmt: skip


def events_of(sight: Sight) -> Events:
    """Whatever the programs tell; keys are not made here."""
    return Events(sight.bpf, sight.decoder, sight.history, sight.names, lambda _: None)


def keys_of(name: NodeName, peer: int) -> PeerKeys:
    return PeerKeys(
        name, PeerState.READY, "", Epoch(1), Epoch(1), PairId(peer), Cipher.CHACHA20_POLY1305,
        Engine.BPF, confirmed=True,
    )  # fmt: skip


class _Attached:
    modes: frozenset[str] = frozenset()

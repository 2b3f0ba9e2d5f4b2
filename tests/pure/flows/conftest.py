# SPDX-License-Identifier: Apache-2.0
"""The types of the datapath's object, compiled here and now from bpf/."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address
from typing import Any

import pytest

from build_bpf import ROOT, compile_bpf
from pellicle.datapath.address import to_bytes
from pellicle.flows.decode import Decoder
from pellicle.wire.btf import Btf


@pytest.fixture(scope="session")
def btf(tmp_path_factory: pytest.TempPathFactory) -> Btf:
    out = tmp_path_factory.mktemp("bpf") / "pellicle.bpf.o"
    return Btf.parse(compile_bpf(ROOT / "bpf" / "pellicle.bpf.c", out).read_bytes())


@pytest.fixture(scope="session")
def decoder(btf: Btf) -> Decoder:
    return Decoder.of(btf, {7: "ssh"})


Pack = Callable[..., bytes]


@pytest.fixture(scope="session")
def pack_key(btf: Btf) -> Pack:
    """A `struct flow_key`, as the datapath writes it; addresses and names may be text."""
    layout, hooks, names = btf.struct("flow_key"), btf.enum("hook"), btf.enum("reason")

    def pack(**fields: Any) -> bytes:
        for end in ("source", "destination"):
            fields[end] = {"bytes": to_bytes(ip_address(fields.get(end, "10.244.1.2")))}
        fields["hook"] = hooks[fields.get("hook", "HOOK_DOOR")]
        fields["reason"] = names[fields.get("reason", "SEALED")]
        return layout.pack(**fields)

    return pack


@pytest.fixture(scope="session")
def pack_event(btf: Btf, pack_key: Pack) -> Pack:
    """A `struct event` of a flow."""
    layout, row_layout = btf.struct("event"), btf.struct("flow_row")
    kind = btf.enum("event_kind")["EVENT_FLOW"]

    def pack(key: bytes, **row: int) -> bytes:
        return layout.pack(kind=kind, key=key, row=row_layout.pack(**row))

    return pack

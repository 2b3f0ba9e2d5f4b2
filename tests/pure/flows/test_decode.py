# SPDX-License-Identifier: Apache-2.0
"""What C writes is what Python reads, and what Python cannot read is named."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellicle.flows.decode import Decoder, FlowEvent, PathMtu, ProbeSeen, SaConfirmed
from pellicle.wire.btf import Btf

from .conftest import Pack

U16 = st.integers(0, (1 << 16) - 1)
U32 = st.integers(0, (1 << 32) - 1)
U64 = st.integers(0, (1 << 64) - 1)
ADDRESS = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6).filter(lambda a: not a.ipv4_mapped))
COUNTERS = ("packets", "bytes", "first", "last", "reported", "pair")
NUMBERS = ("source_identity", "destination_identity", "spi", "epoch")


@given(
    source=ADDRESS,
    destination=ADDRESS,
    ports=st.tuples(U16, U16),
    counters=st.tuples(*[U64] * len(COUNTERS)),
    numbers=st.tuples(*[U32] * len(NUMBERS)),
)
def test_a_flow_comes_back_as_it_was_written(
    *,
    decoder: Decoder,
    pack_key: Pack,
    pack_event: Pack,
    source: Any,
    destination: Any,
    ports: tuple[int, int],
    counters: tuple[int, ...],
    numbers: tuple[int, ...],
) -> None:
    key = pack_key(
        source=str(source),
        destination=str(destination),
        source_port=ports[0],
        destination_port=ports[1],
        protocol=6,
        hook="HOOK_FROM_NET",
        reason="DROP_REPLAYED",
    )
    row = dict(zip((*COUNTERS, *NUMBERS), (*counters, *numbers), strict=True))
    decoded = decoder.events([pack_event(key, **row)])
    assert decoded.rejected == []
    (event,) = decoded.events
    assert isinstance(event, FlowEvent)
    assert event.key == key
    assert (event.source, event.destination) == (source, destination)
    assert (event.source_port, event.destination_port) == ports
    assert (event.protocol, event.hook, event.reason.name) == (6, "from_net", "DROP_REPLAYED")
    assert (event.packets, event.octets, event.first, event.last) == counters[:4]
    assert event.pair == counters[5]
    assert (event.source_identity, event.destination_identity, event.spi, event.epoch) == numbers
    assert event.engine == ""


def test_the_engine_is_told_by_its_name(
    decoder: Decoder, btf: Btf, pack_key: Pack, pack_event: Pack
) -> None:
    numbers = btf.enum("engine")
    assert numbers.keys() == {"ENGINE_BPF", "ENGINE_XFRM"}, "a new one needs its word in the tables"
    rows = [pack_event(pack_key(), engine=number) for number in (0, *numbers.values(), 99)]
    decoded = decoder.events(rows)
    assert [event.engine for event in decoded.events] == ["", "bpf", "xfrm"]
    assert [each.why for each in decoded.rejected] == [
        "engine 99 is not one that this version knows"
    ]


def test_ports_and_spi_lie_in_network_order_on_the_wire(pack_key: Pack, btf: Btf) -> None:
    key = pack_key(source_port=0x1234, destination_port=80)
    assert key[32:36] == b"\x12\x34\x00\x50"
    row = btf.struct("flow_row").pack(spi=0xC0FFEE01)
    assert b"\xc0\xff\xee\x01" in row


def test_every_kind_of_event_is_told_from_the_others(
    decoder: Decoder, btf: Btf, pack_key: Pack, pack_event: Pack
) -> None:
    layout, kinds, probes = btf.struct("event"), btf.enum("event_kind"), btf.enum("probe_kind")
    key = pack_key(source="192.168.1.2", destination="192.168.2.2")
    records = [
        layout.pack(kind=kinds["EVENT_SA_CONFIRMED"], pair=77, number=3),
        layout.pack(kind=kinds["EVENT_PROBE"], pair=77, number=0, probe=probes["PROBE_ASK"]),
        layout.pack(kind=kinds["EVENT_PROBE"], pair=78, number=1, probe=probes["PROBE_ANSWER"]),
        layout.pack(kind=kinds["EVENT_PMTU"], number=1400, key=key),
        pack_event(key, packets=1),
    ]
    assert len(kinds) == 4, "a new kind of event needs a case here"
    decoded = decoder.events(records)
    assert decoded.rejected == []
    assert decoded.events[:4] == [
        SaConfirmed(77, 3),
        ProbeSeen(77, 0, "ask"),
        ProbeSeen(78, 1, "answer"),
        PathMtu(ip_address("192.168.1.2"), ip_address("192.168.2.2"), 1400),
    ]
    assert isinstance(decoded.events[4], FlowEvent)


def test_records_of_another_size_are_refused_by_name_and_the_rest_is_read(
    decoder: Decoder, pack_key: Pack, pack_event: Pack
) -> None:
    good = pack_event(pack_key(), packets=5)
    decoded = decoder.events([b"", good, good[:-1], good + b"\0", good])
    assert [event.packets for event in decoded.events] == [5, 5]
    assert [each.why for each in decoded.rejected] == [
        f"a record of {size} bytes, not {len(good)}" for size in (0, len(good) - 1, len(good) + 1)
    ]
    assert {each.name for each in decoded.rejected} == {"struct event"}


@pytest.mark.parametrize(
    ("says", "field", "offset"),
    [
        ("kind 200 is not one", "kind", 0),
        ("reason 200 is not one", "key", 38),
        ("hook 200 is not one", "key", 37),
    ],
)
def test_numbers_nobody_knows_are_refused_and_the_rest_is_read(
    *,
    decoder: Decoder,
    btf: Btf,
    pack_key: Pack,
    pack_event: Pack,
    says: str,
    field: str,
    offset: int,
) -> None:
    good = pack_event(pack_key(), packets=5)
    strange = bytearray(good)
    strange[btf.struct("event").by_name[field].offset + offset] = 200
    decoded = decoder.events([bytes(strange), good])
    assert len(decoded.events) == 1
    (rejected,) = decoded.rejected
    assert says in rejected.why


def test_a_new_kind_of_event_is_refused_until_python_has_a_row_for_it(
    decoder: Decoder, pack_key: Pack, pack_event: Pack
) -> None:
    newer = replace(decoder, kinds={1: "weather"})
    decoded = newer.events([pack_event(pack_key())])
    assert decoded.events == []
    assert decoded.rejected[0].why == "weather is an event that this version does not know"


def test_rows_of_the_map_make_the_same_events_oldest_first(
    decoder: Decoder, btf: Btf, pack_key: Pack, pack_event: Pack
) -> None:
    keys = [pack_key(source_port=port) for port in (1, 2, 3)]
    rows = [{"packets": 9, "last": last, "spi": 256} for last in (30, 10, 20)]
    layout = btf.struct("flow_row")
    items = [(key, layout.pack(**row)) for key, row in zip(keys, rows, strict=True)]
    decoded = decoder.flows([*items, (b"short", items[0][1])])
    assert [event.last for event in decoded.events] == [10, 20, 30]
    assert [each.why for each in decoded.rejected] == [
        f"5 and {layout.size} bytes, not {len(keys[0])} and {layout.size}"
    ]
    records = [pack_event(key, **row) for key, row in zip(keys, rows, strict=True)]
    assert set(decoder.events(records).events) == set(decoded.events)


def test_nothing_decodes_to_nothing(decoder: Decoder) -> None:
    assert decoder.events([]).events == []
    assert decoder.flows([]).events == []


def test_an_object_with_another_event_is_refused(btf: Btf, monkeypatch: pytest.MonkeyPatch) -> None:
    struct = Btf.struct
    other = {"event": "flow_row"}
    monkeypatch.setattr(Btf, "struct", lambda self, name: struct(self, other.get(name, name)))
    with pytest.raises(
        ValueError, match=r"struct event has no key\.audited, key\.destination\.bytes, "
    ):
        Decoder.of(btf, {})

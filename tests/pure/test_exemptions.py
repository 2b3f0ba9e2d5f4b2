# SPDX-License-Identifier: Apache-2.0
"""What nodes may say in the clear: the forms that are taken, those that are not, and the rows."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellicle.datapath.exempt import ExemptKey, plan
from pellicle.exemptions import DEFAULT_EXEMPTIONS, Exemption, exemption, names
from pellicle.values import FieldError

TAKEN = {
    "ssh=tcp/22": Exemption("ssh", 6, (22, 22)),
    "etcd=tcp/2379-2380": Exemption("etcd", 6, (2379, 2380)),
    "bfd=udp/3784": Exemption("bfd", 17, (3784, 3784)),
    "ospf=89": Exemption("ospf", 89),
    "pings=icmp": Exemption("pings", 1),
    "all.of-it=tcp": Exemption("all.of-it", 6),
}
REFUSED = {
    "tcp/22": "is not of the form name=protocol/port",
    "=tcp/22": "is not of the form",
    "a name=tcp/22": "is not 1 to 63 letters, digits",
    "x=tpc/22": '"tpc" is no protocol: give tcp, udp, sctp',
    "x=256": "is no protocol",
    "x=0": "is no protocol",
    "x=tcp/0": "ports are 1 to 65535",
    "x=tcp/65536": "ports are 1 to 65535",
    "x=tcp/9-8": "the lower one first",
    "x=tcp/1-1025": "at most 1024 ports in a row",
    "x=icmp/8": "icmp has no ports: leave /8 away",
    "x=50": "ESP is never touched",
}


@pytest.mark.parametrize("text", TAKEN)
def test_what_is_taken_is_said_as_it_was_written(text: str) -> None:
    made = exemption("exempt", text)
    assert made == TAKEN[text]
    assert exemption("exempt", str(made)) == made


@pytest.mark.parametrize("text", REFUSED)
def test_what_is_refused(text: str) -> None:
    with pytest.raises(FieldError) as refusal:
        exemption("exempt", text)
    assert REFUSED[text] in str(refusal.value)


@given(st.text(max_size=40))
def test_nothing_else_is_ever_raised(text: str) -> None:
    try:
        made = exemption("exempt", text)
    except FieldError:
        return
    assert exemption("exempt", str(made)) == made


def test_rows_are_one_for_each_port_and_the_first_that_fits_is_named() -> None:
    etcd, all_of_tcp, again = (
        exemption("exempt", text) for text in ("etcd=tcp/2379-2380", "all=tcp", "again=tcp/2380")
    )
    rows = plan([etcd, all_of_tcp, again])
    assert {key: row.rule for key, row in rows.items()} == {
        ExemptKey(6, 2379): etcd.number,
        ExemptKey(6, 2380): etcd.number,
        ExemptKey(6, 0): all_of_tcp.number,
    }
    assert names([etcd])[etcd.number] == "etcd=tcp/2379-2380"


def test_what_a_node_may_need_before_it_has_keys_is_exempt_by_default() -> None:
    keys = plan(exemption("exempt", text) for text in DEFAULT_EXEMPTIONS).keys()
    for protocol, port in ((6, 6443), (6, 2379), (17, 500), (17, 4500), (17, 67), (17, 546)):
        assert ExemptKey(protocol, port) in keys
    assert ExemptKey(6, 22) not in keys
    assert all(key.port for key in keys)

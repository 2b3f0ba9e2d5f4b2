# SPDX-License-Identifier: Apache-2.0
"""How a person names the ends of a flow."""

from __future__ import annotations

import pytest

from pellicle.facts import EndpointName, IdentityNumber, NodeName
from pellicle.flows.history import History
from pellicle.flows.names import Name
from pellicle.flows.selection import Party, Selection

from .seen import flow_event

FLOW = flow_event("10.244.1.2", "fd00:244:2::2", identities=(300, 0))
WEB = Name(NodeName("n1"), IdentityNumber(300), EndpointName("default", "web-0"))
NODE = Name(NodeName("n2"), IdentityNumber(6))


@pytest.mark.parametrize(
    ("asked", "is_source", "is_destination"),
    [
        ("10.244.1.2", True, False),
        ("10.244.1.3", False, False),
        ("fd00:244:2::2", False, True),
        ("fd00:0244:0002:0::2", False, True),
        ("10.244.0.0/16", True, False),
        ("10.244.1.9/24", True, False),
        ("fd00:244::/32", False, True),
        ("0.0.0.0/0", True, False),
        ("::/0", False, True),
        ("300", True, False),
        ("6", False, True),
        ("web-0", True, False),
        ("web-*", True, False),
        ("web", False, False),
        ("n1", True, False),
        ("n2", False, True),
        ("n?", True, True),
        ("default/web-0", True, False),
        ("default/*", True, False),
        ("other/web-0", False, False),
    ],
)
def test_a_party_is_an_address_a_network_an_identity_a_node_or_a_pod(
    asked: str, is_source: bool, is_destination: bool
) -> None:
    history = History()
    history.add([FLOW], {FLOW.source: WEB, FLOW.destination: NODE})
    assert bool(history.last(1, Selection.parse(None, asked, None))) == is_source
    assert bool(history.last(1, Selection.parse(None, None, asked))) == is_destination


@pytest.mark.parametrize("asked", ["web-0", "n1", "default/*"])
def test_an_address_without_a_name_is_found_by_no_name(asked: str) -> None:
    history = History()
    history.add([FLOW], {})
    assert history.last(1, Selection.parse(None, asked, None)) == []


@pytest.mark.parametrize(
    ("verdict", "is_seen"),
    [(None, True), ("encrypted", True), ("clear", False), ("dropped", False)],
)
def test_a_verdict_selects(verdict: str | None, is_seen: bool) -> None:
    history = History()
    history.add([FLOW], {})
    assert bool(history.last(1, Selection.parse(verdict, None, None))) == is_seen


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("10.244.1", "10.244.1"),
        ("10.244.0.0/33", "10.244.0.0/33"),
        ("fd00::1::2", "fd00::1::2"),
        ("4294967296", "32 bits"),
        ("", "no address, network, identity, node or pod"),
        ("default/", "no address, network, identity, node or pod"),
    ],
)
def test_what_can_name_nothing_is_refused_in_words(asked: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        Party.parse(asked)


def test_an_unknown_verdict_is_refused() -> None:
    with pytest.raises(ValueError, match="'open' is no verdict: encrypted, clear, dropped"):
        Selection.parse("open", None, None)

# SPDX-License-Identifier: Apache-2.0
"""States and policies for tests: strategies for any, and a few that are like Pellicle's own."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

from hypothesis import strategies as st

from pellicle.wire.xfrm import (
    Action,
    Mark,
    Offload,
    OffloadFlags,
    Policy,
    PolicyDirection,
    State,
    StateFlags,
    StateKey,
    Template,
)

U32 = st.integers(0, 2**32 - 1)
IF_ID = 0x70656C6C
MARKS = st.none() | st.builds(Mark, U32, st.integers(1, 2**32 - 1))
ADDRESSES_4 = st.integers(0, 2**32 - 1).map(IPv4Address)
ADDRESSES_6 = st.integers(0, 2**128 - 1).map(IPv6Address)
NETWORKS_4 = st.builds(
    lambda address, bits: IPv4Network((int(address), bits), strict=False),
    ADDRESSES_4,
    st.integers(0, 32),
)
NETWORKS_6 = st.builds(
    lambda address, bits: IPv6Network((int(address), bits), strict=False),
    ADDRESSES_6,
    st.integers(0, 128),
)
ALGORITHMS = st.sampled_from(
    [("rfc4106(gcm(aes))", 160), ("rfc4106(gcm(aes))", 288), ("rfc7539esp(chacha20,poly1305)", 288)]
)


def states(addresses: Any) -> st.SearchStrategy[State]:
    keys = st.builds(StateKey, addresses, addresses, U32, MARKS)
    return st.builds(
        lambda algorithm, window, **fields: State(
            algorithm=algorithm[0],
            key_bits=algorithm[1],
            replay_window=window,
            secret=bytes(range(algorithm[1] // 8)),
            **fields,
        ),
        algorithm=ALGORITHMS,
        window=st.integers(0, 4096),
        key=keys,
        reqid=U32,
        if_id=U32,
        flags=st.integers(0, 255).map(StateFlags),
        packet_limit=st.integers(0, 2**64 - 2),
        offload=st.none()
        | st.builds(
            Offload, st.integers(1, 2**31 - 1), st.sampled_from(range(8)).map(OffloadFlags)
        ),
    )


def policies(networks: Any) -> st.SearchStrategy[Policy]:
    templates = st.builds(Template, ADDRESSES_4, ADDRESSES_4, U32, U32, st.booleans())
    templates |= st.builds(Template, ADDRESSES_6, ADDRESSES_6, U32, U32, st.booleans())
    return st.builds(
        Policy,
        direction=st.sampled_from(PolicyDirection),
        source=networks,
        destination=networks,
        mark=MARKS,
        if_id=U32,
        priority=U32,
        action=st.sampled_from(Action),
        template=st.none() | templates,
    )


STATES = states(ADDRESSES_4) | states(ADDRESSES_6)
POLICIES = policies(NETWORKS_4) | policies(NETWORKS_6)


CHACHA, AES = "rfc7539esp(chacha20,poly1305)", "rfc4106(gcm(aes))"
ANY_4 = IPv4Network("0.0.0.0/0")
INBOUND = State(
    StateKey(
        ip_address("192.0.2.1"), ip_address("192.0.2.2"), 0x12345678, Mark(0x70D00, 0xFFFF0F00)
    ),
    0x70650007,
    IF_ID,
    CHACHA,
    288,
    StateFlags.ESN | StateFlags.AF_UNSPEC | StateFlags.NOECN,
    1024,
    secret=bytes(range(36)),
)
LIMITED = State(
    StateKey(ip_address("2001:db8::1"), ip_address("2001:db8::2"), 0x100),
    1,
    0,
    AES,
    160,
    StateFlags(0),
    32,
    packet_limit=2**32,
    secret=bytes(range(20)),
)
TUNNEL = Template(ip_address("192.0.2.1"), ip_address("192.0.2.2"), 0x12345678, 0x70650007)
OUTBOUND = Policy(
    PolicyDirection.OUT, ANY_4, IPv4Network("10.244.2.0/24"), Mark(0x70E00, 0xFFFF3F00), IF_ID, 100,
    template=TUNNEL,
)  # fmt: skip
WANTED = Policy(
    PolicyDirection.IN, IPv6Network("::/0"), IPv6Network("::/0"), None, IF_ID, 7,
    template=Template(ip_address("0.0.0.0"), ip_address("0.0.0.0"), 0, 0, is_optional=True),
)  # fmt: skip
DROP = Policy(PolicyDirection.OUT, ANY_4, ANY_4, Mark(0xE00, 0xF00), IF_ID, 2**32 - 1, Action.BLOCK)

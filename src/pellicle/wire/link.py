# SPDX-License-Identifier: Apache-2.0
"""Devices and their addresses: rtnetlink requests for what Pellicle does to them, and dumps.

struct ifinfomsg  family, 0, type: 16, index: 32, flags: 32, change mask: 32
struct ifaddrmsg  family, prefix length, flags, scope, index: 32
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv6Address, IPv6Interface

from pellicle.wire.nlmsg import (
    CREATE,
    DUMP,
    EXCLUSIVE,
    REPLACE,
    Malformed,
    Reply,
    Request,
    attribute,
    attributes,
    nested,
    read_text,
    read_u32,
    text,
    u8,
    u32,
)

Interface = IPv4Interface | IPv6Interface

RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR, RTM_GETADDR = 20, 21, 22

_LINK = struct.Struct("=BxHiII")
_ADDRESS = struct.Struct("=BBBBI")
_AF_INET, _AF_INET6 = 2, 10
_IFF_UP, _IFF_NOARP, _IFF_LOWER_UP = 0x1, 0x80, 0x10000
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_MASTER = 1, 3, 4, 5, 10
_IFLA_OPERSTATE, _IF_OPER_UNKNOWN, _IF_OPER_UP = 16, 0, 6
_IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_AF_SPEC, _IFLA_NET_NS_FD = 18, 20, 26, 28
_IFLA_INFO_KIND, _IFLA_INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFLA_XFRM_LINK, _IFLA_XFRM_IF_ID = 1, 2
_IFLA_VXLAN_ID, _IFLA_VXLAN_LEARNING, _IFLA_VXLAN_PORT, _IFLA_VXLAN_COLLECT_METADATA = 1, 7, 15, 25
_IFLA_GENEVE_PORT, _IFLA_GENEVE_COLLECT_METADATA = 5, 6
_OVERLAY_PORT = {"vxlan": _IFLA_VXLAN_PORT, "geneve": _IFLA_GENEVE_PORT}
_COLLECT_METADATA = {
    "vxlan": _IFLA_VXLAN_COLLECT_METADATA,
    "geneve": _IFLA_GENEVE_COLLECT_METADATA,
}
_OF_INTEREST = {"xfrm", *_OVERLAY_PORT}
"""Devices of which more is read than all have."""
_IFLA_INET6_ADDR_GEN_MODE, _ADDR_GEN_NONE = 8, 1
_IFA_ADDRESS, _IFA_LOCAL, _IFA_FLAGS = 1, 2, 8
_IFA_F_NODAD, _IFA_F_NOPREFIXROUTE = 0x02, 0x200


@dataclass(frozen=True, slots=True)
class LinkInfo:
    """A device as the kernel shows it."""

    index: int
    name: str
    mac: str
    """Empty for a device without one."""
    mtu: int
    kind: str
    """veth, bridge, vxlan, xfrm…; empty for hardware and loopback."""
    is_up: bool
    """By order of the operator."""
    is_running: bool
    """Packets pass: it is up, so is the other end, and the kernel has taken notice."""
    is_noarp: bool = False
    peer: int = 0
    """For a veth: the ifindex of its other end, in that end's namespace."""
    master: int = 0
    alias: str = ""
    """A remark, for people and for whoever set it."""
    if_id: int = 0
    """For an xfrm interface: what its states and policies carry."""
    link: int = 0
    """For an xfrm interface: the ifindex of the device below."""
    overlay_port: int = 0
    """For a VXLAN or Geneve device that is told for each packet where to send it: its UDP port."""


@dataclass(frozen=True, slots=True)
class LinkAddress:
    """An address on a device."""

    index: int
    interface: Interface
    """The address with its prefix length."""


@dataclass(frozen=True, slots=True)
class VethEnd:
    """One end of a veth pair to be made."""

    name: str
    mac: str | None = None
    mtu: int | None = None
    netns_fd: int | None = None
    """Where the end shall live; None: where the request is sent."""
    index: int = 0
    """The ifindex to have; 0: the kernel chooses. Ends in two namespaces that happen to get the
    same one learn of each other's carrier a second late (the kernel's linkwatch_urgent_event)."""


def add_veth(end: VethEnd, peer: VethEnd) -> Request:
    """Makes a veth pair."""
    # The peer's own ifinfomsg stands before its attributes, inside the nested one.
    inner = nested(_VETH_INFO_PEER, _LINK.pack(0, 0, peer.index, 0, 0), *_veth_end(peer))
    info = nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "veth"), nested(_IFLA_INFO_DATA, inner))
    body = _LINK.pack(0, 0, end.index, 0, 0) + b"".join(_veth_end(end)) + info
    return Request(RTM_NEWLINK, CREATE | EXCLUSIVE, body)


def add_xfrm(name: str, if_id: int, link: int) -> Request:
    """Makes an xfrm interface above `link`, for states and policies with this `if_id`."""
    data = nested(_IFLA_INFO_DATA, u32(_IFLA_XFRM_LINK, link), u32(_IFLA_XFRM_IF_ID, if_id))
    info = nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, "xfrm"), data)
    body = _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + info
    return Request(RTM_NEWLINK, CREATE | EXCLUSIVE, body)


def add_overlay(name: str, kind: str, port: int) -> Request:
    """Makes a vxlan or geneve device that is told for each packet where to send it, and as what."""
    said = b"\1" if kind == "vxlan" else b""  # Geneve has it as an attribute without content
    parts = [
        attribute(_OVERLAY_PORT[kind], port.to_bytes(2)),
        attribute(_COLLECT_METADATA[kind], said),
    ]
    if kind == "vxlan":
        parts += [u32(_IFLA_VXLAN_ID, 0), u8(_IFLA_VXLAN_LEARNING, 0)]
    info = nested(_IFLA_LINKINFO, text(_IFLA_INFO_KIND, kind), nested(_IFLA_INFO_DATA, *parts))
    body = _LINK.pack(0, 0, 0, 0, 0) + text(_IFLA_IFNAME, name) + info
    return Request(RTM_NEWLINK, CREATE | EXCLUSIVE, body)


def change_link(
    index: int,
    *,
    is_up: bool | None = None,
    mtu: int | None = None,
    mac: str | None = None,
    is_noarp: bool | None = None,
    has_link_local: bool | None = None,
    netns_fd: int | None = None,
    name: str | None = None,
    alias: str | None = None,
) -> Request:
    """Changes what is given. `has_link_local` False: IPv6 makes no address of its own."""
    flags = mask = 0
    for wanted, flag in ((is_up, _IFF_UP), (is_noarp, _IFF_NOARP)):
        if wanted is not None:
            mask |= flag
            flags |= flag if wanted else 0
    parts = [_LINK.pack(0, 0, index, flags, mask)]
    if mtu is not None:
        parts.append(u32(_IFLA_MTU, mtu))
    if mac is not None:
        parts.append(attribute(_IFLA_ADDRESS, _mac(mac)))
    if name is not None:
        parts.append(text(_IFLA_IFNAME, name))
    if alias is not None:
        parts.append(text(_IFLA_IFALIAS, alias))
    if netns_fd is not None:
        parts.append(u32(_IFLA_NET_NS_FD, netns_fd))
    if has_link_local is not None:
        mode = u8(_IFLA_INET6_ADDR_GEN_MODE, 0 if has_link_local else _ADDR_GEN_NONE)
        parts.append(nested(_IFLA_AF_SPEC, nested(_AF_INET6, mode)))
    return Request(RTM_NEWLINK, 0, b"".join(parts))


def remove_link(index: int) -> Request:
    """Removes a device; a veth takes its other end with it."""
    return Request(RTM_DELLINK, 0, _LINK.pack(0, 0, index, 0, 0))


def dump_links() -> Request:
    return Request(RTM_GETLINK, DUMP, _LINK.pack(0, 0, 0, 0, 0))


def read_link(reply: Reply) -> LinkInfo:
    """A device of a dump or event."""
    if len(reply.body) < _LINK.size:
        raise Malformed(f"a link of {len(reply.body)} bytes")
    _family, _type, index, flags, _change = _LINK.unpack_from(reply.body)
    found = attributes(reply.body, _LINK.size)
    info = attributes(found.get(_IFLA_LINKINFO, b""))
    kind = read_text(info, _IFLA_INFO_KIND)
    data = attributes(info.get(_IFLA_INFO_DATA, b"")) if kind in _OF_INTEREST else {}
    return LinkInfo(
        index=index,
        name=read_text(found, _IFLA_IFNAME),
        mac=found.get(_IFLA_ADDRESS, b"").hex(":"),
        mtu=read_u32(found, _IFLA_MTU),
        kind=kind,
        is_up=bool(flags & _IFF_UP),
        is_running=_is_running(flags, found, kind),
        is_noarp=bool(flags & _IFF_NOARP),
        peer=read_u32(found, _IFLA_LINK) if kind == "veth" else 0,
        master=read_u32(found, _IFLA_MASTER),
        alias=read_text(found, _IFLA_IFALIAS),
        if_id=read_u32(data, _IFLA_XFRM_IF_ID) if kind == "xfrm" else 0,
        link=read_u32(data, _IFLA_XFRM_LINK) if kind == "xfrm" else 0,
        overlay_port=_overlay_port(kind, data),
    )


def put_address(address: LinkAddress, *, has_prefix_route: bool = True) -> Request:
    """Adds an address, usable at once: no duplicate address detection."""
    flags = _IFA_F_NODAD | (0 if has_prefix_route else _IFA_F_NOPREFIXROUTE)
    return Request(RTM_NEWADDR, CREATE | REPLACE, _address_body(address, flags))


def remove_address(address: LinkAddress) -> Request:
    return Request(RTM_DELADDR, 0, _address_body(address, 0))


def dump_addresses() -> Request:
    return Request(RTM_GETADDR, DUMP, _ADDRESS.pack(0, 0, 0, 0, 0))


def read_address(reply: Reply) -> LinkAddress | None:
    """An address of a dump or event; None in another family than IP."""
    if len(reply.body) < _ADDRESS.size:
        raise Malformed(f"an address row of {len(reply.body)} bytes")
    family, bits, _flags, _scope, index = _ADDRESS.unpack_from(reply.body)
    found = attributes(reply.body, _ADDRESS.size)
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS) or b""
    if family not in (_AF_INET, _AF_INET6):
        return None
    size = 4 if family == _AF_INET else 16
    if len(packed) != size or bits > size * 8:
        raise Malformed(f"an address of {len(packed)} bytes and {bits} bits")
    if size == 4:
        return LinkAddress(index, IPv4Interface((IPv4Address(packed), bits)))
    return LinkAddress(index, IPv6Interface((IPv6Address(packed), bits)))


def _overlay_port(kind: str, data: dict[int, bytes]) -> int:
    if kind not in _OVERLAY_PORT or data.get(_COLLECT_METADATA[kind], b"\0") == b"\0":
        return 0
    return int.from_bytes(data.get(_OVERLAY_PORT[kind], b""))


def _is_running(flags: int, found: dict[int, bytes], kind: str) -> bool:
    state = (found.get(_IFLA_OPERSTATE) or b"\0")[0]
    # Loopback and tunnels stay "unknown"; a veth is so only on its way up, and drops packets then.
    works = state == _IF_OPER_UP or (state == _IF_OPER_UNKNOWN and kind != "veth")
    return works and bool(flags & _IFF_LOWER_UP)


def _veth_end(end: VethEnd) -> list[bytes]:
    parts = [text(_IFLA_IFNAME, end.name)]
    if end.mac is not None:
        parts.append(attribute(_IFLA_ADDRESS, _mac(end.mac)))
    if end.mtu is not None:
        parts.append(u32(_IFLA_MTU, end.mtu))
    if end.netns_fd is not None:
        parts.append(u32(_IFLA_NET_NS_FD, end.netns_fd))
    return parts


def _address_body(address: LinkAddress, flags: int) -> bytes:
    interface = address.interface
    family = _AF_INET if interface.version == 4 else _AF_INET6
    scope = 253 if interface.version == 6 and interface.ip.is_link_local else 0
    head = _ADDRESS.pack(family, interface.network.prefixlen, flags & 0xFF, scope, address.index)
    packed = interface.ip.packed
    parts = attribute(_IFA_LOCAL, packed) + attribute(_IFA_ADDRESS, packed)
    return head + parts + (u32(_IFA_FLAGS, flags) if flags else b"")


def _mac(words: str) -> bytes:
    raw = bytes.fromhex(words.replace(":", ""))
    if len(raw) != 6:
        raise ValueError(f"{words!r} is not a MAC address")
    return raw

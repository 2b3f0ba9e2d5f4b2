# SPDX-License-Identifier: Apache-2.0
"""What the CNI specification says, as far as the agent needs it: requests, results, errors.

Nothing here touches the world. The plugin has refused already what a network configuration
must not say; what is checked here is what would do harm. Versions 0.4.0, 1.0.0 and 1.1.0 of
the protocol are spoken; they differ in the shape of a result, and only the last has GC and
STATUS.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from typing import Any, Literal

import msgspec

from pellicle import values
from pellicle.facts import Address, Attachment, Endpoint, EndpointName, IdentityNumber

VERSIONS = ("0.4.0", "1.0.0", "1.1.0")
DEFAULT_NAMESPACE = "default"
NO_IDENTITY = IdentityNumber(0)
"""Of an endpoint that is still being made."""

_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,255}")
_INTERFACE = re.compile(r"[A-Za-z0-9._@-]{1,15}")


class Code(IntEnum):
    """Error codes of CNI; from 100 on our own."""

    INCOMPATIBLE_VERSION = 1
    UNSUPPORTED_FIELD = 2
    UNKNOWN_CONTAINER = 3
    INVALID_ENVIRONMENT = 4
    IO_FAILURE = 5
    UNDECODABLE = 6
    INVALID_CONFIG = 7
    TRY_AGAIN_LATER = 11
    UNAVAILABLE = 50
    POOL_EXHAUSTED = 100
    DIFFERENT = 101
    SECOND_INTERFACE = 102


class CniError(Exception):
    """A call that cannot be answered; what the runtime and its operator are told."""

    def __init__(self, code: Code, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.code, self.message, self.hint = code, message, hint


@dataclass(frozen=True, slots=True, order=True)
class Plug:
    """One interface of one container: CNI's name for an attachment."""

    container_id: str
    interface: str

    def __str__(self) -> str:
        return f"{self.container_id}/{self.interface}"

    @property
    def host_device(self) -> str:
        """Found again from the name alone, without any memory."""
        return f"pel{self._digest().hex()[:11]}"

    @property
    def pod_mac(self) -> str:
        return _local_mac(self._digest()[8:14])

    @property
    def host_mac(self) -> str:
        return _local_mac(self._digest()[16:22])

    def _digest(self) -> bytes:
        return sha256(str(self).encode()).digest()


@dataclass(frozen=True, slots=True)
class Mtu:
    """How large packets may be: of a pod's device, and to everything behind its gateway."""

    device: int
    v4: int
    v6: int


@dataclass(frozen=True, slots=True)
class Hop:
    """One address of a pod, and its way to everything else."""

    address: Address
    gateway: Address
    mtu: int
    """Of the whole path, encryption included."""


class Request(msgspec.Struct, frozen=True, kw_only=True):
    """The agent's call `cni`, as the plugin sends it."""

    command: Literal["ADD", "DEL", "CHECK", "GC", "STATUS"]
    container_id: str = ""
    ifname: str = ""
    netns: str = ""
    """The path as the runtime wrote it: for the result. The descriptor is what counts."""
    args: dict[str, str] = {}
    config: dict[str, Any] = {}

    @property
    def plug(self) -> Plug:
        return Plug(self.container_id, self.ifname)

    @property
    def version(self) -> str:
        return str(self.config.get("cniVersion", ""))


def parse(arguments: Mapping[str, Any]) -> Request:
    """A request that may be acted upon; `CniError` when it is not one."""
    try:
        request = msgspec.convert(dict(arguments), Request)
    except msgspec.ValidationError as error:
        raise CniError(Code.UNDECODABLE, f"not a CNI request: {error}") from error
    if request.command in ("ADD", "DEL", "CHECK"):
        if not _IDENTIFIER.fullmatch(request.container_id):
            why = f"CNI_CONTAINERID {request.container_id!r}: letters, digits and _.- only"
            raise CniError(Code.INVALID_ENVIRONMENT, why)
        if not _INTERFACE.fullmatch(request.ifname) or request.ifname in (".", ".."):
            why = f"CNI_IFNAME {request.ifname!r} is not a name for a network device"
            raise CniError(Code.INVALID_ENVIRONMENT, why)
    if request.command == "ADD":
        _refuse_version(request)
    return request


def endpoint_name(request: Request) -> EndpointName:
    """The pod; without Kubernetes, its container."""
    namespace = request.args.get("K8S_POD_NAMESPACE") or DEFAULT_NAMESPACE
    name = request.args.get("K8S_POD_NAME") or _container_name(request)
    try:
        return EndpointName(
            values.dns_label("CNI_ARGS: K8S_POD_NAMESPACE", namespace),
            values.dns_name("CNI_ARGS: K8S_POD_NAME", name),
        )
    except values.FieldError as error:
        raise CniError(Code.INVALID_ENVIRONMENT, str(error)) from error


def _container_name(request: Request) -> str:
    try:
        return values.dns_name("", request.container_id)
    except values.FieldError:
        return request.plug.host_device


def labels(request: Request) -> dict[str, str]:
    """From the network, then what the runtime knows of this container; the last one wins."""
    found = _label_map(request.config.get("labels"), '"labels"')
    runtime = request.config.get("runtimeConfig") or {}
    if not isinstance(runtime, dict):
        raise CniError(Code.INVALID_CONFIG, '"runtimeConfig" is not a map')
    found |= _label_map(runtime.get("labels"), '"runtimeConfig.labels"')
    for pair in filter(None, request.args.get("labels", "").split(",")):
        key, equals, value = pair.partition("=")
        if not equals:
            why = f"CNI_ARGS: labels={request.args['labels']!r} is not key=value,key=value"
            raise CniError(Code.INVALID_ENVIRONMENT, why)
        found[key] = value
    return found


def valid_plugs(request: Request) -> frozenset[Plug]:
    """What a GC must leave alone. That the list lacks is an error, never an empty list."""
    rows = request.config.get("cni.dev/valid-attachments")
    if not isinstance(rows, list):
        why = 'GC needs the list "cni.dev/valid-attachments" in the network configuration'
        raise CniError(Code.INVALID_CONFIG, why)
    try:
        return frozenset(Plug(row["containerID"], row["ifname"]) for row in rows)
    except (KeyError, TypeError) as error:
        why = f"an entry of cni.dev/valid-attachments lacks containerID or ifname: {error}"
        raise CniError(Code.INVALID_CONFIG, why) from error


def result(request: Request, hops: Sequence[Hop], device_mtu: int) -> dict[str, Any]:
    """What ADD answers, in the shape of the network's cniVersion."""
    plug, is_newest = request.plug, request.version == VERSIONS[-1]
    of_device = {"mtu": device_mtu} if is_newest else {}
    return {
        "cniVersion": request.version,
        "interfaces": [
            {"name": plug.host_device, "mac": plug.host_mac, **of_device},
            {"name": plug.interface, "mac": plug.pod_mac, **of_device, "sandbox": request.netns},
        ],
        "ips": [
            {
                **({"version": str(hop.address.version)} if request.version == "0.4.0" else {}),
                "address": f"{hop.address}/{hop.address.max_prefixlen}",
                "gateway": str(hop.gateway),
                "interface": 1,
            }
            for hop in hops
        ],
        "routes": [
            {
                "dst": "0.0.0.0/0" if hop.address.version == 4 else "::/0",
                "gw": str(hop.gateway),
                **({"mtu": hop.mtu} if is_newest else {}),
            }
            for hop in hops
        ],
        "dns": request.config.get("dns", {}),
    }


def missing_from(previous: Any, endpoint: Endpoint) -> list[str]:
    """Addresses of the endpoint that the runtime's memory of ADD does not have, in words."""
    if not isinstance(previous, dict) or not isinstance(previous.get("ips"), list):
        return []
    told = [row.get("address") for row in previous["ips"] if isinstance(row, dict)]
    ours = [f"{address}/{address.max_prefixlen}" for address in endpoint.addresses]
    return [f"prevResult does not have the address {mine}" for mine in ours if mine not in told]


def attachment(plug: Plug) -> Attachment:
    return Attachment(plug.container_id, plug.interface, plug.host_device, plug.pod_mac)


def plug_of(endpoint: Endpoint) -> Plug | None:
    """None for an endpoint that no runtime made."""
    made = endpoint.attachment
    return None if made is None else Plug(made.container_id, made.interface)


def _refuse_version(request: Request) -> None:
    if request.version not in VERSIONS:
        why = f"cniVersion {request.version!r} is not spoken here, only {', '.join(VERSIONS)}"
        raise CniError(Code.INCOMPATIBLE_VERSION, why)


def _label_map(value: Any, where: str) -> dict[str, str]:
    try:
        return msgspec.convert(value or {}, dict[str, str])
    except msgspec.ValidationError as error:
        raise CniError(Code.INVALID_CONFIG, f"{where} is not a map of texts: {error}") from error


def _local_mac(raw: bytes) -> str:
    """Locally administered, unicast (IEEE 802 §8.2)."""
    return bytes(((raw[0] | 0x02) & 0xFE, *raw[1:6])).hex(":")

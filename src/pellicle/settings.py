# SPDX-License-Identifier: Apache-2.0
"""Every setting there is: its name, its words, how its text is read, its default.

The flag, the environment variable and the key in the file follow from the name, so that
a setting is declared here and nowhere else. What the values mean together is in `config`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePosixPath
from typing import Any, Final

from pellicle.choices import (
    Attach,
    AuditMode,
    CipherChoice,
    EngineChoice,
    IpsecOffload,
    KeyDerivation,
    KeyMode,
    LogFormat,
    LogLevel,
    OuterFamily,
    Routing,
)
from pellicle.exemptions import DEFAULT_EXEMPTIONS, NOTHING, Exemption, exemption
from pellicle.facts import Overlay
from pellicle.values import address, dns_name, each, listener, network, one_per_family, place, shown
from pellicle.wire.spiffe_id import NODE, TRUST_DOMAIN, checked_template

ENVIRONMENT_PREFIX: Final = "PELLICLE_"


Read = Callable[[str, Sequence[str]], Any]
"""(name, texts) → value; ValueError says what is wrong. Only a list has more than one text."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One thing that can be configured."""

    name: str
    """As in `Config` and in the file."""
    words: str
    read: Read
    default: str | None
    """As text; None: nothing is set."""
    metavar: str
    unset: str = "none"
    """What happens when nothing is set."""
    choices: tuple[str, ...] = ()
    is_switch: bool = False
    is_list: bool = False

    @property
    def flag(self) -> str:
        return "--" + self.name.replace("_", "-")

    @property
    def variable(self) -> str:
        return ENVIRONMENT_PREFIX + self.name.upper()


_TRUE: Final = frozenset({"true", "yes", "on", "1"})
_FALSE: Final = frozenset({"false", "no", "off", "0"})
_UNITS: Final = {"ms": 0.001, "s": 1.0, "": 1.0, "m": 60.0, "h": 3600.0}
_KERNEL_TABLES: Final = {253: "default", 254: "main", 255: "local"}


def _switch(name: str, texts: Sequence[str]) -> bool:
    word = texts[0].lower()
    if word not in _TRUE | _FALSE:
        raise ValueError(f"{name}: {shown(texts[0])} is neither true nor false")
    return word in _TRUE


def _path(name: str, texts: Sequence[str]) -> PurePosixPath:
    path = PurePosixPath(texts[0])
    if not path.is_absolute() or "\0" in texts[0]:
        raise ValueError(f"{name}: {shown(texts[0])} is not an absolute path: begin it with /")
    return path


def _device(name: str, texts: Sequence[str]) -> str:
    if not re.fullmatch(r"[^\s/:]{1,15}", texts[0]) or texts[0] in {".", ".."}:
        raise ValueError(f"{name}: {shown(texts[0])} is not the name of a device (see ip link)")
    return texts[0]


def _seconds(least: float, most: float) -> Read:
    def read(name: str, texts: Sequence[str]) -> float:
        match = re.fullmatch(r"([0-9]{1,9}(?:\.[0-9]{1,9})?) ?(ms|s|m|h|)", texts[0])
        if not match:
            raise ValueError(f"{name}: {shown(texts[0])} is not a time: write 500ms, 5s, 2m or 1h")
        found = float(match[1]) * _UNITS[match[2]]
        if not least <= found <= most:
            raise ValueError(f"{name}: {texts[0]} is not between {least:g}s and {most:g}s")
        return found

    return read


def _number(least: int, most: int) -> Read:
    def read(name: str, texts: Sequence[str]) -> int:
        if not re.fullmatch(r"[0-9]{1,20}", texts[0]):
            raise ValueError(f"{name}: {shown(texts[0])} is not a whole number")
        found = int(texts[0])
        if not least <= found <= most:
            raise ValueError(f"{name}: {found} is not between {least} and {most}")
        return found

    return read


def _route_table(name: str, texts: Sequence[str]) -> int:
    found: int = _number(1, (1 << 32) - 2)(name, texts)
    for table in (found, found + 1):
        if table in _KERNEL_TABLES:
            raise ValueError(f'{name}: {table} is the kernel\'s table "{_KERNEL_TABLES[table]}"')
    return found


def _one_of(kind: type[StrEnum]) -> Read:
    def read(name: str, texts: Sequence[str]) -> StrEnum:
        try:
            return kind(texts[0].lower())
        except ValueError:
            known = ", ".join(kind)
            raise ValueError(f"{name}: {shown(texts[0])} is not known: give {known}") from None

    return read


def _choice(name: str, words: str, kind: type[StrEnum], default: StrEnum) -> Setting:
    known = tuple(kind)
    return Setting(name, words, _one_of(kind), default, "|".join(known), choices=known)


def _addresses(name: str, texts: Sequence[str]) -> Any:
    return one_per_family(name, each(name, texts, address)) if texts else ()


def _cidrs(name: str, texts: Sequence[str]) -> Any:
    return each(name, texts, network)


def _places(name: str, texts: Sequence[str]) -> Any:
    return each(name, texts, place)


def _spiffe_ids(name: str, texts: Sequence[str]) -> tuple[str, ...]:
    for text in texts:
        try:
            checked_template(text)
        except ValueError as error:
            raise ValueError(f"{name}: {shown(text)} {error}") from None
    return tuple(texts)


def _exemptions(name: str, texts: Sequence[str]) -> tuple[Exemption, ...]:
    if list(texts) == [NOTHING]:
        return ()
    return each(name, texts, exemption)


SETTINGS: Final[tuple[Setting, ...]] = (
    Setting(
        "node_name",
        "What this node is called in the cluster.",
        lambda name, texts: dns_name(name, texts[0]),
        None,
        "NAME",
        "this machine's hostname",
    ),
    Setting(
        "directory",
        "The directory of YAML files that all nodes share.",
        _path,
        "/var/lib/pellicle/cluster",
        "DIR",
    ),
    Setting(
        "enable_encrypt_l3",
        "Encrypt between nodes.",
        _switch,
        "false",
        "BOOL",
        is_switch=True,
    ),
    Setting(
        "encrypt_nodes",
        "Also encrypt what nodes, and pods in their network, say to each other.",
        _switch,
        "true",
        "BOOL",
        is_switch=True,
    ),
    Setting(
        "exempt",
        "What nodes may say to each other in the clear, by protocol and port of either end.",
        _exemptions,
        ",".join(DEFAULT_EXEMPTIONS),
        "NAME=PROTOCOL[/PORT[-PORT]],…",
        is_list=True,
    ),
    _choice(
        "routing",
        "How pods' packets go from node to node, encrypted or not: as they are (direct), or in a "
        "tunnel between the nodes (overlay); the same on all nodes.",
        Routing,
        Routing.DIRECT,
    ),
    _choice("overlay", "The tunnel of the routing overlay.", Overlay, Overlay.VXLAN),
    _choice(
        "audit",
        "Drop cleartext that should be encrypted (enforce), or let it pass and report (monitor).",
        AuditMode,
        AuditMode.ENFORCE,
    ),
    _choice(
        "engine",
        "What encrypts: the kernel's IPsec where it is there, else BPF.",
        EngineChoice,
        EngineChoice.AUTO,
    ),
    _choice(
        "cipher",
        "The only cipher to use; auto: with each peer the best that both can do.",
        CipherChoice,
        CipherChoice.AUTO,
    ),
    _choice(
        "ipsec_offload", "Let the uplink encrypt where it can.", IpsecOffload, IpsecOffload.AUTO
    ),
    Setting(
        "uplink",
        "The device that leads to the other nodes.",
        _device,
        None,
        "DEVICE",
        "the device of the default route",
    ),
    Setting(
        "addresses",
        "This node's addresses, at most one of each IP version.",
        _addresses,
        None,
        "ADDRESS,…",
        "those of the uplink",
        is_list=True,
    ),
    Setting("pod_cidrs", "Where this node's pods live.", _cidrs, None, "CIDR,…", is_list=True),
    Setting(
        "cluster_cidrs",
        "Where all pods live: what is unknown in there is never taken for the outside world.",
        _cidrs,
        None,
        "CIDR,…",
        is_list=True,
    ),
    Setting(
        "node_cidrs",
        "Where all nodes are: what is unknown in there is a node without a record yet.",
        _cidrs,
        None,
        "CIDR,…",
        "only what has a record is a node",
        is_list=True,
    ),
    Setting(
        "node_cidrs_except",
        "Addresses inside node_cidrs that are no nodes', and may be spoken to in the clear.",
        _places,
        None,
        "ADDRESS|CIDR,…",
        is_list=True,
    ),
    _choice(
        "key_mode",
        "Who is believed: whoever may write records (cluster), whoever shares a secret (psk), or "
        "whoever SPIFFE gave an identity (spiffe); auto: psk with a psk_file.",
        KeyMode,
        KeyMode.AUTO,
    ),
    Setting(
        "psk_file",
        "The file with the secret that all nodes share; mode 0600. It is followed.",
        _path,
        None,
        "FILE",
    ),
    _choice(
        "ipsec_key_derivation",
        "Each SA has keys of its own (pairwise), or all nodes use those in the psk_file as they "
        "are (none): only for peers that were told their keys by hand.",
        KeyDerivation,
        KeyDerivation.PAIRWISE,
    ),
    Setting(
        "encrypt_subnets",
        "Subnets of pods: the kernel gets one policy for each instead of some for each peer in "
        "them. Only for keys that all nodes share.",
        _cidrs,
        None,
        "CIDR,…",
        is_list=True,
    ),
    Setting(
        "spiffe_socket",
        "The Unix socket of the SPIFFE Workload API.",
        _path,
        "/run/spire/agent-sockets/spire-agent.sock",
        "FILE",
    ),
    Setting(
        "spiffe_id",
        "The SPIFFE IDs that nodes have; one for each trust domain of nodes.",
        _spiffe_ids,
        f"spiffe://{TRUST_DOMAIN}/pellicle/node/{NODE}",
        "TEMPLATE,…",
        is_list=True,
    ),
    Setting("run_dir", "Where the agent's socket is.", _path, "/run/pellicle", "DIR"),
    Setting(
        "state_dir",
        "What shall outlive a reboot: the audit trail, and the history of this node's keys.",
        _path,
        "/var/lib/pellicle/state",
        "DIR",
    ),
    Setting(
        "metrics_address",
        "Where Prometheus may ask, for example 127.0.0.1:9465: GET /metrics and /healthz.",
        lambda name, texts: listener(name, texts[0]),
        None,
        "ADDRESS:PORT",
    ),
    Setting("bpffs", "Where BPF objects are pinned.", _path, "/sys/fs/bpf/pellicle", "DIR"),
    Setting(
        "route_table",
        "The routing table for the encrypted; the one after it is used, too.",
        _route_table,
        "200",
        "NUMBER",
    ),
    Setting(
        "drain_seconds",
        "How long replaced keys still decrypt.",
        _seconds(0, 3600),
        "10s",
        "TIME",
    ),
    Setting(
        "key_lifetime",
        "How long keys are used, less up to a fifth at random.",
        _seconds(1, 30 * 86400),
        "1h",
        "TIME",
    ),
    Setting(
        "sa_packet_limit",
        "New keys after so many packets under the same.",
        _number(1, 1 << 62),
        str(1 << 40),
        "NUMBER",
    ),
    Setting("flow_interval", "How often a flow is reported.", _seconds(0.1, 3600), "5s", "TIME"),
    Setting(
        "refresh_seconds",
        "How often everything is looked at anew, changed or not.",
        _seconds(0.1, 3600),
        "30s",
        "TIME",
    ),
    _choice("log_level", "The least that is logged.", LogLevel, LogLevel.INFO),
    _choice("log_format", "How it is logged.", LogFormat, LogFormat.TEXT),
    _choice("attach", "How programs are hung on devices.", Attach, Attach.AUTO),
    _choice("outer_family", "The IP version between nodes.", OuterFamily, OuterFamily.AUTO),
)

# SPDX-License-Identifier: Apache-2.0
"""What was seen of a machine; where something was tried, why it failed, in the kernel's words."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from pellicle.encryption.engine import Abilities
from pellicle.facts import Network, Overlay
from pellicle.kernel.bpf.attach import Mode
from pellicle.sources.uplink import Uplink
from pellicle.wire.netlink import Rule
from pellicle.wire.xfrm import Policy


@dataclass(frozen=True, slots=True)
class Programs:
    """The BPF programs, as they were loaded and attached for a moment."""

    load_why: str | None
    """Why they do not load; None: they do."""
    mode: Mode | None = None
    """How they are attached."""
    attach_why: str | None = None
    """Why they are not."""


@dataclass(frozen=True, slots=True)
class Tried:
    """What only root may try or see."""

    programs: Programs
    has_bpffs: bool
    can_mount_bpffs: bool
    xfrm_why: str | None
    """Why the kernel's IPsec cannot be asked at all."""
    abilities: Abilities
    uplink: Uplink | str
    """Or why there is none."""
    has_offload: bool
    """The uplink's ESP offload is there and on."""
    policies: tuple[Policy, ...] = ()
    """Everybody's."""
    rules: tuple[Rule, ...] = ()
    """Everybody's."""
    pods: tuple[Network, ...] = ()
    """Where the routes of an agent that has run here lead: pods of other nodes."""
    overlays: Mapping[Overlay, OSError | None] = field(default_factory=dict)
    """Why none of its devices can be made; None: they can."""


@dataclass(frozen=True, slots=True)
class Machine:
    """What anybody may see of this machine, and what was tried."""

    release: str
    """Of the kernel, such as 6.12.9-amd64."""
    architecture: str
    cpu_flags: frozenset[str]
    forwarding: Mapping[str, str | None]
    """The agent's sysctls; None: there is none of that name."""
    tried: Tried | None
    """None: not root."""

    @property
    def has_fast_aes(self) -> bool:
        """AES and the multiplication that GCM needs, in hardware (x86: PCLMULQDQ, arm64: PMULL)."""
        return "aes" in self.cpu_flags and bool(self.cpu_flags & {"pclmulqdq", "pmull"})


def read_cpu_flags(cpuinfo: Iterable[str]) -> frozenset[str]:
    """What /proc/cpuinfo says that all of its processors can."""
    found = [
        frozenset(words.split())
        for name, _, words in (line.partition(":") for line in cpuinfo)
        if name.strip() in {"flags", "Features"}
    ]
    return frozenset.intersection(*found) if found else frozenset()

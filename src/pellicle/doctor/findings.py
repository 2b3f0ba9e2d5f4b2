# SPDX-License-Identifier: Apache-2.0
"""What is to be said about a machine, and what can be done: a Machine in, a Diagnosis out.

well     as it should be
wary     works without, or worth a word
wrong    no engine runs with this
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum

from pellicle.choices import CipherChoice, EngineChoice
from pellicle.datapath.overlay import NEEDS
from pellicle.doctor.conflicts import catching, early, sharing
from pellicle.doctor.machine import Machine, Programs, Tried
from pellicle.encryption.engine import Abilities, Choice, choose
from pellicle.facts import Cipher
from pellicle.sources.uplink import Uplink

OLDEST = (5, 15)
"""The kernel that docs/engines.md asks for."""
_CAPABILITIES = (
    "In a container it needs the host's CAP_SYS_ADMIN, CAP_NET_ADMIN and CAP_BPF (privileged)."
)
_AES = frozenset({Cipher.AES_128_GCM, Cipher.AES_256_GCM})
_MODULES = dict.fromkeys(_AES, ("gcm", "CONFIG_CRYPTO_GCM")) | {
    Cipher.CHACHA20_POLY1305: ("chacha20poly1305", "CONFIG_CRYPTO_CHACHA20POLY1305")
}
_PACKAGE = "On Debian the modules come with the running kernel's package (linux-image-$(uname -r))."


class Mark(StrEnum):
    """How good or bad it is."""

    WELL = "well"
    WARY = "wary"
    WRONG = "wrong"


@dataclass(frozen=True, slots=True)
class Finding:
    """One line."""

    mark: Mark
    about: str
    says: str
    advice: str = ""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """All lines, and what `--engine auto` would take."""

    findings: tuple[Finding, ...]
    choice: Choice | None
    """None: no engine runs here, or nothing could be tried."""


def diagnose(machine: Machine) -> Diagnosis:
    """Everything there is to say."""
    found = [_kernel(machine.release, machine.architecture)]
    tried = machine.tried
    if tried is None:
        why = "most can only be tried by root"
        found += [Finding(Mark.WRONG, "root", why, "Run it as root."), *_forwarding(machine)]
        return Diagnosis(tuple(found), None)
    found += _programs(tried.programs)
    found += [_bpffs(tried), _uplink(tried.uplink), *_forwarding(machine)]
    found += _ipsec(tried)
    if tried.abilities.usable:
        found += _speed(machine, tried)
    found += _overlays(tried)
    found += _others(tried)
    is_able = all(finding.mark is not Mark.WRONG for finding in found)
    choice = choose(EngineChoice.AUTO, CipherChoice.AUTO, tried.abilities) if is_able else None
    return Diagnosis((*found, _engine(choice)), choice)


def _kernel(release: str, architecture: str) -> Finding:
    says = f"Linux {release}, {architecture}"
    match = re.match(r"(\d+)\.(\d+)", release)
    if match and (int(match[1]), int(match[2])) >= OLDEST:
        return Finding(Mark.WELL, "kernel", says)
    wanted = ".".join(map(str, OLDEST))
    return Finding(Mark.WARY, "kernel", says, f"It is expected to work from {wanted} on.")


def _programs(programs: Programs) -> Iterator[Finding]:
    if programs.load_why is not None:
        advice = f"Both engines need them: a kernel with CONFIG_BPF_SYSCALL. {_CAPABILITIES}"
        yield Finding(Mark.WRONG, "BPF programs", programs.load_why, advice)
        return
    yield Finding(Mark.WELL, "BPF programs", "they load")
    if programs.mode is None:
        advice = (
            "Needs CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF: "
            f"modprobe sch_ingress cls_bpf. {_PACKAGE}"
        )
        yield Finding(Mark.WRONG, "attaching", programs.attach_why or "impossible", advice)
        return
    how = {"tcx": "by link (tcx) and filter (clsact)", "clsact": "by filter (clsact)"}[
        programs.mode
    ]
    yield Finding(Mark.WELL, "attaching", how)


def _bpffs(tried: Tried) -> Finding:
    if tried.has_bpffs:
        return Finding(Mark.WELL, "bpffs", "mounted at /sys/fs/bpf")
    if tried.can_mount_bpffs:
        return Finding(Mark.WELL, "bpffs", "not mounted yet: the agent mounts it")
    advice = "Needs CONFIG_BPF_SYSCALL; without it nothing outlives the agent."
    return Finding(Mark.WRONG, "bpffs", "this kernel has no BPF file system", advice)


def _uplink(uplink: Uplink | str) -> Finding:
    if isinstance(uplink, str):
        advice = "Try `pellicle doctor --uplink DEVICE`."
        return Finding(Mark.WARY, "uplink", uplink, advice)
    addresses = ", ".join(map(str, uplink.addresses))
    return Finding(Mark.WELL, "uplink", f"{uplink.name}: {addresses}, MTU {uplink.mtu}")


def _forwarding(machine: Machine) -> Iterator[Finding]:
    off = [name for name, value in machine.forwarding.items() if value not in {"1", None}]
    if not off:
        yield Finding(Mark.WELL, "forwarding", "on")
        return
    says = f"off: {', '.join(off)}"
    yield Finding(Mark.WARY, "forwarding", says, "The agent switches it on when it starts.")


def _ipsec(tried: Tried) -> Iterator[Finding]:
    """The kernel's IPsec. What lacks costs the engine xfrm, not more."""
    if tried.xfrm_why is not None:
        advice = f"For the engine xfrm: CONFIG_XFRM_USER (modprobe xfrm_user). {_PACKAGE}"
        yield Finding(Mark.WARY, "kernel's IPsec", tried.xfrm_why, advice)
        return
    yield from _ciphers(tried.abilities)
    error = tried.abilities.device
    if error is None:
        yield Finding(Mark.WELL, "xfrm interface", "can be made")
        return
    advice = f"For the engine xfrm: CONFIG_XFRM_INTERFACE (modprobe xfrm_interface). {_PACKAGE}"
    yield Finding(Mark.WARY, "xfrm interface", _words(error), advice)


def _ciphers(able: Abilities) -> Iterator[Finding]:
    """One line for each that works and for each that alone is missing."""
    lacking = {cipher: error for cipher, error in able.ciphers.items() if error is not None}
    if len(lacking) == len(able.ciphers):
        advice = (
            "For the engine xfrm: CONFIG_INET_ESP and CONFIG_INET6_ESP (modprobe esp4 esp6), and "
            f"a cipher (modprobe gcm chacha20poly1305). {_PACKAGE}"
        )
        says = "; ".join(dict.fromkeys(map(_words, lacking.values()))) or "not tried"
        yield Finding(Mark.WARY, "kernel's ESP", says, advice)
        return
    for cipher in able.ciphers:
        if cipher not in lacking:
            yield Finding(Mark.WELL, f"ESP, {cipher}", "over IPv4 and IPv6")
            continue
        module, option = _MODULES[cipher]
        advice = f"For this cipher: {option} (modprobe {module}). {_PACKAGE}"
        yield Finding(Mark.WARY, f"ESP, {cipher}", _words(lacking[cipher]), advice)


def _overlays(tried: Tried) -> Iterator[Finding]:
    """What the routing overlay can travel in. What lacks costs only that."""
    able = [kind for kind, error in tried.overlays.items() if error is None]
    if able:
        yield Finding(Mark.WELL, "overlay", " and ".join(able))
    for kind, error in tried.overlays.items():
        if error is not None:
            advice = f"Only for --routing overlay --overlay {kind}: {NEEDS[kind]}. {_PACKAGE}"
            yield Finding(Mark.WARY, f"overlay, {kind}", _words(error), advice)


def _speed(machine: Machine, tried: Tried) -> Iterator[Finding]:
    """Only worth a word where the kernel encrypts."""
    usable = tried.abilities.usable
    if machine.has_fast_aes:
        yield Finding(Mark.WELL, "AES", "in hardware")
    elif _AES & set(usable):
        has_other = Cipher.CHACHA20_POLY1305 in usable
        advice = "--cipher chacha20-poly1305 is faster here." if has_other else ""
        says = "not in hardware: aes-gcm will be slow"
        yield Finding(Mark.WARY, "AES", says, advice)
    if isinstance(tried.uplink, Uplink):
        name = tried.uplink.name
        says = f"{name} takes states" if tried.has_offload else f"none by {name}: the CPU encrypts"
        yield Finding(Mark.WELL, "ESP offload", says)


def _others(tried: Tried) -> Iterator[Finding]:
    """What others have set up, and would have a say in pods' packets."""
    yield _conflict(
        "policies of others",
        "none that catches pods' packets",
        catching(tried.policies, tried.pods),
        "Without an if_id they apply to pods' packets before these reach pellicle_xfrm, if pods "
        "have such addresses: make them narrower, or give them an if_id.",
    )
    yield _conflict(
        "rules of others",
        "none that sees pods' packets before ours",
        [*early(tried.rules), *sharing(tried.rules)],
        "Pellicle marks packets 0xe00/0xf00 (0xffff3f00 for the kernel's IPsec) and looks them up "
        "by rule 1: move the rule behind it, or have its owner use other bits.",
    )


def _conflict(about: str, well: str, found: Iterable[str], advice: str) -> Finding:
    says = "; ".join(found)
    return Finding(Mark.WARY, about, says, advice) if says else Finding(Mark.WELL, about, well)


def _engine(choice: Choice | None) -> Finding:
    if choice is None:
        return Finding(Mark.WRONG, "engine", "none: see what is wrong above")
    ciphers = ", ".join(choice.ciphers)
    return Finding(Mark.WELL, "engine", f"auto takes {choice.engine} ({choice.why}): {ciphers}")


def _words(error: OSError) -> str:
    return error.strerror or str(error)

# SPDX-License-Identifier: Apache-2.0
"""What is said about machines of all kinds, and what others' policies and rules amount to."""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from pellicle.doctor.conflicts import catching, early, sharing
from pellicle.doctor.findings import Diagnosis, Finding, Mark, diagnose
from pellicle.doctor.machine import Machine, Programs, Tried, read_cpu_flags
from pellicle.encryption.engine import ALGORITHMS, Abilities
from pellicle.facts import Cipher, Engine, Overlay
from pellicle.sources.uplink import Uplink
from pellicle.wire.netlink import Rule
from pellicle.wire.xfrm import Action, Policy, PolicyDirection, Template
from pellicle.wire.xfrm import Mark as PacketMark

NO_AEAD = OSError(errno.ENOSYS, "Requested AEAD algorithm not found")
NO_KIND = OSError(errno.EOPNOTSUPP, "Unknown device type")
WHOLE = Abilities(None, dict.fromkeys(ALGORITHMS))
ETH0 = Uplink("eth0", 2, 1500, (ip_address("192.0.2.1"), ip_address("2001:db8::1")))
TRIED = Tried(Programs(None, "tcx"), True, True, None, WHOLE, ETH0, False)
FORWARDING = {"net/ipv4/ip_forward": "1", "net/ipv6/conf/all/forwarding": "1"}
MACHINE = Machine(
    "6.12.9-amd64", "x86_64", frozenset({"aes", "pclmulqdq", "avx2"}), FORWARDING, TRIED
)
CHACHA = Cipher.CHACHA20_POLY1305
ONLY_AES = Abilities(None, {**dict.fromkeys(ALGORITHMS), CHACHA: NO_AEAD})
ONLY_CHACHA = Abilities(None, {**dict.fromkeys(ALGORITHMS, NO_AEAD), CHACHA: None})
NO_ESP = Abilities(NO_KIND, dict.fromkeys(ALGORITHMS, NO_AEAD))
NO_DEVICE = Abilities(NO_KIND, dict.fromkeys(ALGORITHMS))


def tried(**other: Any) -> Machine:
    return replace(MACHINE, tried=replace(TRIED, **other))


@dataclass(frozen=True)
class Case:
    says: str
    machine: Machine
    engine: Engine | None
    mark: Mark
    about: str
    words: str
    """A part of what is said."""
    advice: str = ""
    """A part of what to do; empty: there is nothing to do."""


WELL, WARY, WRONG = Mark
BPF, XFRM, NONE = Engine.BPF, Engine.XFRM, None
CASES = (
    Case("a good one", MACHINE, XFRM, WELL, "engine",
         "auto takes xfrm (the kernel has ESP): aes-256-gcm, aes-128-gcm, chacha20-poly1305"),
    Case("no root", replace(MACHINE, tried=None), NONE, WRONG, "root", "by root", "Run it as root"),
    Case("kernel", MACHINE, XFRM, WELL, "kernel", "Linux 6.12.9-amd64, x86_64"),
    Case("5.15 is enough", replace(MACHINE, release="5.15.0-91"), XFRM, WELL, "kernel", "5.15.0"),
    Case("an old one", replace(MACHINE, release="5.10.0-28"), XFRM, WARY, "kernel", "5.10", "5.15"),
    Case("a strange one", replace(MACHINE, release="next"), XFRM, WARY, "kernel", "next", "5.15"),
    Case("programs", MACHINE, XFRM, WELL, "BPF programs", "they load"),
    Case("no programs", tried(programs=Programs("Operation not permitted")), NONE, WRONG,
         "BPF programs", "Operation not permitted", "CAP_BPF"),
    Case("then neither", tried(programs=Programs("no")), NONE, WRONG, "engine", "none"),
    Case("tcx", MACHINE, XFRM, WELL, "attaching", "tcx"),
    Case("clsact", tried(programs=Programs(None, "clsact")), XFRM, WELL, "attaching", "clsact"),
    Case("not attached", tried(programs=Programs(None, None, "No such file")), NONE, WRONG,
         "attaching", "No such file", "CONFIG_NET_CLS_BPF"),
    Case("bpffs", MACHINE, XFRM, WELL, "bpffs", "mounted at /sys/fs/bpf"),
    Case("not mounted", tried(has_bpffs=False), XFRM, WELL, "bpffs", "the agent mounts it"),
    Case("no bpffs", tried(has_bpffs=False, can_mount_bpffs=False), NONE, WRONG, "bpffs",
         "no BPF file system", "CONFIG_BPF_SYSCALL"),
    Case("uplink", MACHINE, XFRM, WELL, "uplink", "eth0: 192.0.2.1, 2001:db8::1, MTU 1500"),
    Case("no uplink", tried(uplink="no default route"), XFRM, WARY, "uplink", "no default route",
         "--uplink DEVICE"),
    Case("forwarding", MACHINE, XFRM, WELL, "forwarding", "on"),
    Case("no IPv6", replace(MACHINE, forwarding={"net/ipv4/ip_forward": "1", "six": None}), XFRM,
         WELL, "forwarding", "on"),
    Case("no forwarding", replace(MACHINE, forwarding=FORWARDING | {"net/ipv4/ip_forward": "0"}),
         XFRM, WARY, "forwarding", "off: net/ipv4/ip_forward", "The agent switches it on"),
    Case("no IPsec", tried(xfrm_why="Protocol not supported", abilities=NO_ESP), BPF, WARY,
         "kernel's IPsec", "Protocol not supported", "CONFIG_XFRM_USER"),
    Case("a cipher", MACHINE, XFRM, WELL, "ESP, aes-128-gcm", "IPv4 and IPv6"),
    Case("no ESP", tried(abilities=NO_ESP), BPF, WARY, "kernel's ESP", str(NO_AEAD.strerror),
         "CONFIG_INET_ESP and CONFIG_INET6_ESP (modprobe esp4 esp6)"),
    Case("so bpf", tried(abilities=NO_ESP), BPF, WELL, "engine", "auto takes bpf (no ESP state"),
    Case("no ChaCha20", tried(abilities=ONLY_AES), XFRM, WARY, f"ESP, {CHACHA}",
         str(NO_AEAD.strerror), "modprobe chacha20poly1305"),
    Case("no GCM", tried(abilities=ONLY_CHACHA), XFRM, WARY, "ESP, aes-256-gcm",
         str(NO_AEAD.strerror), "CONFIG_CRYPTO_GCM"),
    Case("the device", MACHINE, XFRM, WELL, "xfrm interface", "can be made"),
    Case("no device", tried(abilities=NO_DEVICE), BPF, WARY, "xfrm interface",
         str(NO_KIND.strerror), "CONFIG_XFRM_INTERFACE (modprobe xfrm_interface)"),
    Case("overlays", tried(overlays=dict.fromkeys(Overlay)), XFRM, WELL, "overlay",
         "vxlan and geneve"),
    Case("no Geneve", tried(overlays={Overlay.VXLAN: None, Overlay.GENEVE: NO_KIND}), XFRM, WARY,
         "overlay, geneve", str(NO_KIND.strerror), "CONFIG_GENEVE"),
    Case("AES", MACHINE, XFRM, WELL, "AES", "in hardware"),
    Case("AES on arm64", replace(MACHINE, cpu_flags=frozenset({"aes", "pmull"})), XFRM, WELL,
         "AES", "in hardware"),
    Case("AES without multiplication", replace(MACHINE, cpu_flags=frozenset({"aes"})), XFRM, WARY,
         "AES", "aes-gcm will be slow", "--cipher chacha20-poly1305"),
    Case("a card", tried(has_offload=True), XFRM, WELL, "ESP offload", "eth0 takes states"),
    Case("no card", MACHINE, XFRM, WELL, "ESP offload", "none by eth0: the CPU encrypts"),
    Case("alone", MACHINE, XFRM, WELL, "policies of others", "none"),
    Case("alone with rules", MACHINE, XFRM, WELL, "rules of others", "none"),
    Case("a VPN for all", tried(policies=(Policy(
            PolicyDirection.OUT, ip_network("0.0.0.0/0"), ip_network("10.0.0.0/8"), None, 0, 9,
            template=Template(ETH0.addresses[0], ip_address("203.0.113.7"), 0, 1)),)), XFRM, WARY,
         "policies of others", "out 0.0.0.0/0 → 10.0.0.0/8 (203.0.113.7)", "if_id"),
    Case("a rule in front", tried(rules=(Rule(4, 0, 7, protocol=3),)), XFRM, WARY,
         "rules of others", "0: from all lookup 7 comes before ours", "rule 1"),
    Case("another's marks", tried(rules=(Rule(6, 9, 7, 0x200, 0xF00, protocol=0),)), XFRM, WARY,
         "rules of others", "-6 9: from all fwmark 0x200/0xf00 lookup 7 uses the same bits",
         "other bits"),
)  # fmt: skip


def told(diagnosis: Diagnosis, about: str) -> Finding:
    (found,) = (each for each in diagnosis.findings if each.about == about)
    return found


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_a_machine_is_told_what_it_can_and_what_to_do(case: Case) -> None:
    diagnosis = diagnose(case.machine)
    found = told(diagnosis, case.about)
    assert found.mark is case.mark
    assert case.words in found.says
    assert bool(found.advice) is bool(case.advice)
    assert case.advice in found.advice
    assert (diagnosis.choice.engine if diagnosis.choice else None) is case.engine


def test_what_is_well_needs_no_advice() -> None:
    assert {each.mark for each in diagnose(MACHINE).findings} == {WELL}
    for case in CASES:
        for finding in diagnose(case.machine).findings:
            assert finding.mark is not WELL or not finding.advice


def test_speed_is_no_matter_where_the_kernel_encrypts_nothing() -> None:
    for able in (NO_ESP, NO_DEVICE):
        about = {each.about for each in diagnose(tried(abilities=able)).findings}
        assert not about & {"AES", "ESP offload"}


def test_slow_aes_has_no_way_out_where_there_is_no_other_cipher() -> None:
    machine = replace(tried(abilities=ONLY_AES), cpu_flags=frozenset())
    assert told(diagnose(machine), "AES").advice == ""
    machine = replace(tried(abilities=ONLY_CHACHA), cpu_flags=frozenset())
    assert "AES" not in {each.about for each in diagnose(machine).findings}


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu aes\nprocessor\t: 1\nflags\t\t: aes avx\n", {"aes"}),
        ("processor\t: 0\nFeatures\t: fp asimd aes pmull\n", {"fp", "asimd", "aes", "pmull"}),
        ("model name\t: flags of convenience\n", set()),
        ("", set()),
    ],
)
def test_a_flag_counts_when_all_processors_have_it(text: str, flags: set[str]) -> None:
    assert read_cpu_flags(text.splitlines(keepends=True)) == flags


TUNNEL = Template(ip_address("192.0.2.1"), ip_address("203.0.113.7"), 0, 1)
POLICY = Policy(
    PolicyDirection.OUT, ip_network("0.0.0.0/0"), ip_network("10.0.0.0/8"), None, 0, 9,
    template=TUNNEL,
)  # fmt: skip
PODS = (ip_network("10.244.2.0/24"), ip_network("fd00:244:2::/64"))


@pytest.mark.parametrize(
    ("says", "policy", "is_caught"),
    [
        ("wide", POLICY, True),
        ("forwarded", replace(POLICY, direction=PolicyDirection.FWD), True),
        ("on the way in", replace(POLICY, direction=PolicyDirection.IN), False),
        ("of a device", replace(POLICY, if_id=7), False),
        ("elsewhere", replace(POLICY, destination=ip_network("10.9.0.0/16")), False),
        ("a part", replace(POLICY, destination=ip_network("10.244.2.128/25")), True),
        ("blocks", replace(POLICY, template=None, action=Action.BLOCK), True),
        ("lets pass", replace(POLICY, template=None), False),
        ("our mark", replace(POLICY, mark=PacketMark(0xE00, 0xF00)), True),
        ("kube-proxy's mark", replace(POLICY, mark=PacketMark(0x4000, 0x4000)), False),
        ("no mark of kube-proxy's", replace(POLICY, mark=PacketMark(0, 0x4000)), True),
    ],
)
def test_policies_that_catch_pods_packets(says: str, policy: Policy, *, is_caught: bool) -> None:
    assert bool([*catching([policy], PODS)]) is is_caught, says


def test_with_no_pods_known_every_policy_may_catch_them() -> None:
    elsewhere = replace(POLICY, destination=ip_network("10.9.0.0/16"))
    assert [*catching([elsewhere], ())] == ["out 0.0.0.0/0 → 10.9.0.0/16 (203.0.113.7)"]


@pytest.mark.parametrize(
    ("says", "rule", "is_early", "is_sharing"),
    [
        ("ours", Rule(4, 1, 200, 0xE00, 0xF00), False, False),
        ("the kernel's first", Rule(4, 0, 255, protocol=2), False, False),
        ("the kernel's last", Rule(4, 32766, 254, protocol=2), False, False),
        ("for all, in front", Rule(4, 0, 7, protocol=3), True, False),
        ("of our place", Rule(6, 1, 7, protocol=3), True, False),
        ("for all, behind", Rule(4, 3, 7, protocol=3), False, False),
        ("before the nodes'", Rule(4, 2, 7, protocol=3), True, False),
        ("our mark, in front", Rule(4, 1, 7, 0xE00, 0xF00, protocol=3), True, False),
        ("a bit of it, in front", Rule(4, 1, 7, 0x200, 0x200, protocol=3), True, False),
        ("our mark, behind", Rule(4, 9, 7, 0xE00, 0xF00, protocol=3), False, True),
        ("a neighbour's, in front", Rule(4, 1, 7, 0xD00, 0xF00, protocol=3), False, True),
        ("kube-proxy", Rule(4, 1, 7, 0x4000, 0x4000, protocol=3), False, False),
    ],
)
def test_rules_of_others(says: str, rule: Rule, *, is_early: bool, is_sharing: bool) -> None:
    assert bool([*early([rule])]) is is_early, says
    assert bool([*sharing([rule])]) is is_sharing, says

# SPDX-License-Identifier: Apache-2.0
"""The tables of one agent: what is known, what is wanted, and what stands (`…_up`)."""

from __future__ import annotations

from pellicle.datapath.door import Door
from pellicle.datapath.endpoints import EndpointRow
from pellicle.datapath.exempt import ExemptKey, ExemptRow
from pellicle.datapath.ipcache import CidrRow, Peer
from pellicle.datapath.overlay import OverlayDevice
from pellicle.datapath.programs import Hook, HookName
from pellicle.datapath.xfrm_device import XfrmDevice
from pellicle.encryption.others import OtherRow
from pellicle.encryption.policies import Shared
from pellicle.encryption.routes import RouteName
from pellicle.encryption.table import EncryptKey, EncryptRow
from pellicle.facts import (
    Address,
    EncryptionPolicy,
    Endpoint,
    EndpointName,
    Engine,
    Link,
    Network,
    Node,
    NodeName,
    Owned,
    PairId,
    PolicyName,
    PolicyNumber,
)
from pellicle.flows.names import Name
from pellicle.keys.pairing import PeerKeys, Sa, SaKey
from pellicle.keys.rows import Send
from pellicle.policy.members import GroupNumber, Member, Sides
from pellicle.policy.rulebook import (
    Choice,
    Judgement,
    PairKey,
    Placed,
    PolicyRow,
    PortKey,
    Rulebook,
)
from pellicle.table import Table
from pellicle.wire.netlink import Route, Rule
from pellicle.wire.xfrm import Place, Policy, PolicyKey

GARBAGE = (10_000, 10, 1000)
"""`gc.set_threshold`: to look through the rows of thousands of peers takes a third of a second, and
finds nothing, for there are no cycles among them. Younger garbage is collected as ever."""


class PolicyTables:
    """Those of encryption policies."""

    def __init__(self) -> None:
        self.encryption_policies: Table[PolicyName, EncryptionPolicy] = Table("encryption policies")
        self.book: Table[int, Rulebook] = Table("rulebook")
        self.members: Table[Address, Member] = Table("members of policies")
        self.networks: Table[Network, Member] = Table("networks of policies")
        self.groups: Table[Placed, Sides] = Table("groups")
        self.local_groups: Table[GroupNumber, Sides] = Table("groups here")
        self.judged: Table[PairKey, Judgement] = Table("judged")
        self.policy_ports: Table[PortKey, Choice] = Table("policy ports")
        self.policy_ports_up: Table[PortKey, Choice] = Table("policy ports up")
        self.policy_rows: Table[PairKey, PolicyRow] = Table("policy rows")
        self.policy_rows_up: Table[PairKey, PolicyRow] = Table("policy rows up")
        self.contexts: Table[Owned, PolicyNumber] = Table("own keys")
        self.kept_contexts: Table[Owned, PolicyNumber] = Table("own keys kept")
        self.covered: Table[Owned, PolicyNumber] = Table("own keys covered")
        self.active_policies: Table[PolicyName, EncryptionPolicy] = Table("active policies")
        self.active_book: Table[int, Rulebook] = Table("active rulebook")
        self.own_sends: Table[Owned, Send] = Table("sends, own keys")
        self.own_peers: Table[Owned, PeerKeys] = Table("peers, own keys")


class Tables(PolicyTables):
    """All of them, empty."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes: Table[NodeName, Node] = Table("nodes")
        self.endpoints: Table[EndpointName, Endpoint] = Table("endpoints")
        self.links: Table[str, Link] = Table("links")
        self.own: Table[NodeName, Node] = Table("own node")
        self.ways: Table[str, Link] = Table("uplink and doors")
        self.paths: Table[Address, int] = Table("path MTU")
        self.names: Table[Address, Name] = Table("names")
        self.record: Table[NodeName, Node] = Table("own record")
        self.record_up: Table[NodeName, Node] = Table("own record written")
        self.door: Table[str, Door] = Table("door")
        self.door_up: Table[str, Door] = Table("door up")
        self.doors: Table[int, int] = Table("doors")
        self.doors_up: Table[int, int] = Table("doors up")
        self.device: Table[str, XfrmDevice] = Table("xfrm device")
        self.device_up: Table[str, XfrmDevice] = Table("xfrm device up")
        self.overlay: Table[str, OverlayDevice] = Table("overlay device")
        self.overlay_up: Table[str, OverlayDevice] = Table("overlay device up")
        self.remotes: Table[Address, Address] = Table("remotes")
        self.remotes_up: Table[Address, Address] = Table("remotes up")
        self.hooks: Table[HookName, Hook] = Table("programs")
        self.hooks_up: Table[HookName, Hook] = Table("programs attached")
        self.ipcache: Table[Address, Peer] = Table("ipcache")
        self.ipcache_up: Table[Address, Peer] = Table("ipcache up")
        self.cidrs: Table[Network, CidrRow] = Table("cluster_cidrs")
        self.cidrs_up: Table[Network, CidrRow] = Table("cluster_cidrs up")
        self.exempt: Table[ExemptKey, ExemptRow] = Table("exempt")
        self.exempt_up: Table[ExemptKey, ExemptRow] = Table("exempt up")
        self.pods: Table[Address, EndpointRow] = Table("pods")
        self.pods_up: Table[Address, EndpointRow] = Table("pods up")
        self.routes: Table[RouteName, Route] = Table("routes")
        self.routes_up: Table[RouteName, Route] = Table("routes up")
        self.rules: Table[Rule, Rule] = Table("rules")
        self.rules_up: Table[Rule, Rule] = Table("rules up")
        self.sas: Table[SaKey, Sa] = Table("sas")
        self.sas_up: Table[SaKey, Sa] = Table("sas up")
        self.kernel_sas: Table[SaKey, Sa] = Table("sas up, the kernel's")
        self.shared: Table[Shared, Shared] = Table("shared states up")
        self.shared_up: Table[int, bool] = Table("shared states passable")
        self.kernel_used: Table[Engine, bool] = Table("kernel's IPsec used")
        self.policies: Table[PolicyKey, Policy] = Table("policies")
        self.policies_up: Table[PolicyKey, Policy] = Table("policies up")
        self.others: Table[Place, OtherRow] = Table("others")
        self.others_up: Table[Place, OtherRow] = Table("others up")
        self.passable: Table[PairId, Address] = Table("passable")
        self.sends: Table[NodeName, Send] = Table("sends")
        self.encrypt: Table[EncryptKey, EncryptRow] = Table("encrypt")
        self.encrypt_up: Table[EncryptKey, EncryptRow] = Table("encrypt up")
        self.peers: Table[NodeName, PeerKeys] = Table("peers")

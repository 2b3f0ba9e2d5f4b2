# SPDX-License-Identifier: Apache-2.0
"""SPIFFE as what proves offers: signed by the key of a node's X.509-SVID, the chain beside it.

    proof    +-----+---------+-----------+--------------------+----------------
             | 1   | u16 n   | signature | leaf certificate   | intermediate …
             | u8  |         |  n bytes  | DER                | DER
             +-----+---------+-----------+--------------------+----------------
    signed   0x20 64 times ‖ "pellicle offer, X.509-SVID 1" ‖ 0 ‖ message of the offer

The 64 spaces keep what is signed apart from everything else that the key signs, as in TLS 1.3
(RFC 8446 §4.4.3). A peer is believed when its chain ends at the bundle of its ID's trust domain,
and its ID is one that the templates give to the node of the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import NamedTuple

from cryptography import x509

from pellicle.facts import NodeName, Rejected
from pellicle.keys.svid import (
    Svid,
    SvidError,
    check_chain,
    leaf_id,
    read_certificates,
    verify,
)
from pellicle.keys.trust import Judgement
from pellicle.wire.spiffe import RawSvid, Response
from pellicle.wire.spiffe_id import SpiffeId, expected_id

MAX_PROOF = 16 * 1024
MOST_SIGNATURE = 512
"""RSA with 4096 bits."""
MOST_ANCHORS = 64
"""Of one trust domain: old and new roots stand beside each other for a while."""
SOURCE = "SPIFFE Workload API"

_VERSION = 1
_HEAD = 3
_CONTEXT = b"\x20" * 64 + b"pellicle offer, X.509-SVID 1\x00"
_PAIR_SALT = b"pellicle pair salt, X.509-SVID 1"

Bundles = Mapping[str, tuple[x509.Certificate, ...]]


class News(NamedTuple):
    """What another answer of the Workload API changed."""

    is_svid_new: bool
    are_bundles_new: bool


class Spiffe:
    """A `Trust`: this node's SVID, and the bundles by which others' are judged."""

    fingerprint = "spiffe"
    pair_salt = _PAIR_SALT

    def __init__(
        self, node: NodeName, templates: Sequence[str], clock: Callable[[], float]
    ) -> None:
        """`clock`: seconds since 1970."""
        self._node, self._templates, self._clock = node, tuple(templates), clock
        self.svid: Svid | None = None
        self.bundles: Bundles = MappingProxyType({})
        self.rejected: tuple[Rejected, ...] = ()
        """What of the last answer could not be used."""

    def take(self, said: Response) -> News:
        """Be what the Workload API says; SvidError, and nothing changes, if it gives us no SVID."""
        rejected: list[Rejected] = []
        found = self._ours(said, rejected)
        if found is None:
            why = rejected[0].why if rejected else "it says that this workload has no identity"
            self.rejected = tuple(rejected)
            raise SvidError(why)
        svid, anchors = found
        bundles = {svid.id.trust_domain: anchors}
        for name, raw in said.federated.items():
            try:
                domain = SpiffeId.parse(name if "://" in name else f"spiffe://{name}")
                bundles.setdefault(domain.trust_domain, _anchors(raw))
            except ValueError as error:
                rejected.append(Rejected(SOURCE, f"bundle {name[:300]}", str(error)))
        before, held = self.svid, self.bundles
        self.svid, self.bundles = svid, MappingProxyType(bundles)
        self.rejected = tuple(rejected)
        return News(before is None or before.chain != svid.chain, held != self.bundles)

    def _ours(
        self, said: Response, rejected: list[Rejected]
    ) -> tuple[Svid, tuple[x509.Certificate, ...]] | None:
        """The first SVID that is good, and the roots that it comes with."""
        for raw in said.svids:
            try:
                return self._read(raw)
            except SvidError as error:
                rejected.append(Rejected(SOURCE, f"SVID {raw.spiffe_id[:300]}", str(error)))
        return None

    def _read(self, raw: RawSvid) -> tuple[Svid, tuple[x509.Certificate, ...]]:
        svid, anchors = Svid.read(raw), _anchors(raw.bundle)
        wanted = self._expected(self._node, svid.id.trust_domain)
        if str(svid.id) not in wanted:
            fix = "register it so, or set spiffe_id"
            raise SvidError(f"is {svid.id}, but this node is to be {' or '.join(wanted)}: {fix}")
        # Early or late by this node's clock is for the peers to judge, and for the status to say.
        leaf = svid.chain[0]
        at = max(leaf.not_valid_before_utc, min(self._time(), leaf.not_valid_after_utc))
        check_chain(svid.chain, anchors, at)
        return svid, anchors

    def _expected(self, node: NodeName, trust_domain: str) -> tuple[str, ...]:
        return tuple(expected_id(each, trust_domain, node) for each in self._templates)

    # --- Trust --------------------------------------------------------------------------------

    def now(self) -> float:
        return self._clock()

    def prove(self, message: bytes) -> bytes:
        assert self.svid, "keys are made once there is an SVID"
        signature = self.svid.sign(_CONTEXT + message)
        head = bytes((_VERSION,)) + len(signature).to_bytes(2, "big")
        return head + signature + self.svid.der

    def judge(self, node: NodeName, message: bytes, proof: bytes) -> Judgement:
        try:
            return Judgement(until=self._judge(node, message, proof))
        except SvidError as error:
            return Judgement(str(error), error.until)

    def _judge(self, node: NodeName, message: bytes, proof: bytes) -> float:
        signature, chain = read_proof(proof)
        id_ = leaf_id(chain[0])
        assert self.svid, "records are judged once there is an SVID"
        wanted = self._expected(node, self.svid.id.trust_domain)
        if str(id_) not in wanted:
            raise SvidError(f"its SVID is that of {id_}, not of {' or '.join(wanted)}")
        anchors = self.bundles.get(id_.trust_domain)
        if anchors is None:
            raise SvidError(f"no bundle of the trust domain {id_.trust_domain} is known")
        until = check_chain(chain, anchors, self._time())
        verify(chain[0], signature, _CONTEXT + message)
        return until

    def _time(self) -> datetime:
        return datetime.fromtimestamp(self._clock(), UTC)


def read_proof(proof: bytes) -> tuple[bytes, tuple[x509.Certificate, ...]]:
    """The signature, and the chain of whoever claims to have made it."""
    if not proof:
        raise SvidError("no proof: a signature and an SVID are needed")
    if len(proof) > MAX_PROOF:
        raise SvidError(f"a proof of {len(proof)} bytes; at most {MAX_PROOF} are read")
    if proof[0] != _VERSION or len(proof) < _HEAD:
        raise SvidError("the proof is not a signature and an SVID: another key mode?")
    size = int.from_bytes(proof[1:_HEAD], "big")
    signature, rest = proof[_HEAD : _HEAD + size], proof[_HEAD + size :]
    if not 1 <= size <= MOST_SIGNATURE or len(signature) < size:
        raise SvidError("the proof is not a signature and an SVID: another key mode?")
    chain = read_certificates(rest)
    if not chain:
        raise SvidError("the proof has no certificate")
    return signature, chain


def _anchors(raw: bytes) -> tuple[x509.Certificate, ...]:
    anchors = read_certificates(raw, MOST_ANCHORS)
    if not anchors:
        raise SvidError("its trust bundle is empty")
    return anchors

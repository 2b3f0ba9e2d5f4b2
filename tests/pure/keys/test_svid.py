# SPDX-License-Identifier: Apache-2.0
"""Which SVIDs prove an offer, and what is said of the others.

root ──▶ intermediate ──▶ leaf: spiffe://example.org/pellicle/node/n1, valid 10:00 to 11:00
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ObjectIdentifier
from hypothesis import given
from hypothesis import strategies as st

from pellicle.facts import Epoch, NodeName, Offer
from pellicle.keys.offers import OwnOffer, judge, prove
from pellicle.keys.spiffe import MAX_PROOF, Spiffe, read_proof
from pellicle.keys.svid import SvidError
from pellicle.wire.spiffe import read_response
from tests.spiffe import (
    Authority,
    Issued,
    Wanted,
    ca_extensions,
    der,
    ec_key,
    key_usage,
    leaf_extensions,
    response,
    san,
)

TEN = datetime(2030, 1, 1, 10, tzinfo=UTC)
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)
ELEVEN, HALF_PAST = TEN + HOUR, TEN + 30 * MINUTE
TEMPLATE = "spiffe://{trust_domain}/pellicle/node/{node}"
ID = "spiffe://example.org/pellicle/node/n1"
PATH = "/pellicle/node/n1"
N1, N2 = NodeName("n1"), NodeName("n2")
AUTHORITY = Authority("example.org", begin=TEN - 24 * HOUR, end=TEN + 24 * HOUR)
OTHER = Authority("other.example", begin=TEN - 24 * HOUR, end=TEN + 24 * HOUR)
IMPOSTOR = Authority("example.org", begin=TEN - 24 * HOUR, end=TEN + 24 * HOUR)
NONCE = bytes(range(16))
CONTEXT = b" " * 64 + b"pellicle offer, X.509-SVID 1\0"


class Clock:
    """Wall time, set by hand."""

    def __init__(self, at: datetime = HALF_PAST) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at.timestamp()


def issue(path: str = PATH, authority: Authority = AUTHORITY, **changes: Any) -> Issued:
    return authority.svid(path, begin=TEN, end=ELEVEN, **changes)


def spiffe(
    node: NodeName, svid: Issued, *, clock: Clock | None = None, **federated: bytes
) -> Spiffe:
    """A node that has this SVID, and other trust domains' bundles by name with _ for a dot."""
    made = Spiffe(node, [TEMPLATE, "spiffe://other.example/node/{node}"], clock or Clock())
    names = {name.replace("_", "."): raw for name, raw in federated.items()}
    made.take(read_response(response([svid], names)))
    return made


JUDGE_SVID = issue("/pellicle/node/n2")
SVID = issue()
OFFER = OwnOffer.make(N1, Epoch(3), NONCE, os.urandom, spiffe(N1, SVID)).offer


def proof_by(svid: Issued) -> bytes:
    """A proof by whoever has this SVID, whatever it is worth: it asks nobody."""
    signed = CONTEXT + signed_of(N1, OFFER)
    if isinstance(svid.key, rsa.RSAPrivateKey):
        pss = padding.PSS(padding.MGF1(hashes.SHA256()), 32)
        signature = svid.key.sign(signed, pss, hashes.SHA256())
    else:
        bits = svid.key.curve.key_size
        hash_ = {384: hashes.SHA384(), 521: hashes.SHA512()}.get(bits, hashes.SHA256())
        signature = svid.key.sign(signed, ec.ECDSA(hash_))
    return b"\x01" + len(signature).to_bytes(2, "big") + signature + der(*svid.chain)


def signed_of(node: NodeName, offer: Offer) -> bytes:
    """The message of an offer, as docs/keys.md draws it."""
    head = b"\x10pellicle offer 1" + len(node).to_bytes(2, "big") + node.encode()
    return head + offer.epoch.to_bytes(4, "big") + offer.boot_nonce + offer.public_key


def why(svid: Issued, at: datetime = HALF_PAST, **federated: bytes) -> str:
    """What n2 says of n1's offer, proven with this."""
    judging = spiffe(N2, JUDGE_SVID, clock=Clock(at), **federated)
    return judge(judging, N1, replace(OFFER, proof=proof_by(svid))).why


def with_chain(svid: Issued, *chain: x509.Certificate) -> Issued:
    return replace(svid, chain=chain)


def leaf(**changes: Any) -> Issued:
    """With other extensions than an SVID has."""
    return issue(extensions=leaf_extensions(ID, **changes))


def below(count: int, *, path_length: int | None = None, **changes: Any) -> Issued:
    """A leaf below so many more CAs; `changes` in each of them."""
    key, issuer = AUTHORITY.key, AUTHORITY.intermediate
    between: list[x509.Certificate] = []
    basic = (x509.BasicConstraints(ca=True, path_length=path_length), True)
    for number in range(count):
        made = ec_key()
        wanted = Wanted(
            f"CA {number}", issuer.subject, TEN, ELEVEN,
            ca_extensions(**({"basic": basic} | changes)),
        )  # fmt: skip
        issuer = wanted.made(made, key)
        key = made
        between.insert(0, issuer)
    own = ec_key()
    end = Wanted("workload", issuer.subject, TEN, ELEVEN, leaf_extensions(ID)).made(own, key)
    return Issued(ID, (end, *between, AUTHORITY.intermediate), own)


def signed_with(hash_: hashes.HashAlgorithm) -> Issued:
    own = ec_key()
    wanted = Wanted("w", AUTHORITY.intermediate.subject, TEN, ELEVEN, leaf_extensions(ID), hash_)
    return Issued(ID, (wanted.made(own, AUTHORITY.key), AUTHORITY.intermediate), own)


def below_a_leaf() -> Issued:
    key = ec_key()
    wanted = Wanted("w", SVID.chain[0].subject, TEN, ELEVEN, leaf_extensions(ID))
    return Issued(ID, (wanted.made(key, SVID.key), *SVID.chain), key)


@dataclass(frozen=True)
class Case:
    says: str
    svid: Callable[[], Issued]
    why: str
    at: datetime = HALF_PAST


RSA = rsa.generate_private_key(65537, 2048)
UNKNOWN = x509.UnrecognizedExtension(ObjectIdentifier("1.2.3.4"), b"\x05\x00")
CONSTRAINED = x509.NameConstraints([x509.UniformResourceIdentifier("example.org")], None)
GOOD = (
    Case("as issued", issue, ""),
    Case("in its first second", issue, "", TEN),
    Case("in its last second", issue, "", ELEVEN),
    Case("RSA", lambda: issue(key=RSA), ""),
    Case("P-384", lambda: issue(key=ec.generate_private_key(ec.SECP384R1())), ""),
    Case("P-521", lambda: issue(key=ec.generate_private_key(ec.SECP521R1())), ""),
    Case("no purposes named", lambda: leaf(purposes=None), ""),
    Case("no basic constraints", lambda: leaf(basic=None), ""),
    Case("three more CAs", lambda: below(3), ""),
    Case("as many CAs as allowed", lambda: below(1, path_length=0), ""),
    Case("something unknown, not critical", lambda: leaf(more=(UNKNOWN, False)), ""),
    Case(
        "an email beside the URI",
        lambda: leaf(names=(x509.SubjectAlternativeName(
            [x509.UniformResourceIdentifier(ID), x509.DNSName("n1.example.org")]
        ), False)),
        "",
    ),
)  # fmt: skip
BAD = (
    Case("a second too late", issue, "expired at 2030-01-01 11:00:00", ELEVEN + timedelta(0, 1)),
    Case("a second too early", issue, "not valid before 2030-01-01 10:00", TEN - timedelta(0, 1)),
    Case("a root that is over", issue, "expired at 2030-01-01 11:00:00", TEN + 25 * HOUR),
    Case("another node's", lambda: issue("/pellicle/node/n2"), "is that of spiffe://example.org/p"),
    Case("a path below", lambda: issue(f"{PATH}/x"), f"is that of {ID}/x, not of {ID}"),
    Case("not a node's", lambda: issue("/web"), "is that of spiffe://example.org/web"),
    Case("only the trust domain", lambda: issue(""), "that of a whole trust domain"),
    Case("a stranger's domain", lambda: issue(authority=OTHER), "is that of spiffe://other.exa"),
    Case(
        "a domain without bundle", lambda: issue("/node/n1", OTHER),
        "no bundle of the trust domain other.example",
    ),
    Case(
        "our domain's name, by others", lambda: issue(authority=IMPOSTOR),
        "does not end at the trust bundle",
    ),
    Case(
        "our ID, by another domain's CA",
        lambda: OTHER.svid("", begin=TEN, end=ELEVEN, extensions=leaf_extensions(ID)),
        "an issuer in its chain is of another trust domain",
    ),
    Case("no URI", lambda: leaf(names=None), "names 0 URIs"),
    Case("two URIs", lambda: leaf(names=(san(ID, "spiffe://example.org/b"), False)), "names 2 URI"),
    Case("the same URI twice", lambda: leaf(names=(san(ID, ID), False)), "names 2 URIs"),
    Case("not a SPIFFE ID", lambda: leaf(names=(san("https://n1"), False)), "is not a SPIFFE ID"),
    Case("dots in the path", lambda: leaf(names=(san(f"{ID}/../n1"), False)), "is not a SPIFFE ID"),
    Case("a query", lambda: leaf(names=(san(f"{ID}?x=1"), False)), "is not a SPIFFE ID"),
    Case(
        "a CA", lambda: leaf(basic=(x509.BasicConstraints(ca=True, path_length=0), True)), "a CA's"
    ),
    Case("no key usage", lambda: leaf(usage=None), "not for signatures"),
    Case("for other than signing", lambda: leaf(usage=(key_usage("key_encipherment"), True)),
         "not for signatures"),
    Case("may sign certificates",
         lambda: leaf(usage=(key_usage("digital_signature", "key_cert_sign"), True)),
         "may sign certificates"),
    Case("may sign revocations",
         lambda: leaf(usage=(key_usage("digital_signature", "crl_sign"), True)),
         "may sign certificates"),
    Case("for servers alone",
         lambda: leaf(purposes=(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), False)),
         "for other purposes"),
    Case("for code",
         lambda: leaf(purposes=(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CODE_SIGNING]), False)),
         "for other purposes"),
    Case("something unknown and critical", lambda: leaf(more=(UNKNOWN, True)), "critical"),
    Case("name constraints", lambda: below(1, more=(CONSTRAINED, True)), "critical extension"),
    Case("the chain without its CA", lambda: with_chain(SVID, SVID.chain[0]),
         "does not end at the trust bundle"),
    Case("another's CA", lambda: with_chain(SVID, SVID.chain[0], OTHER.intermediate),
         "another trust domain"),
    Case("a namesake's CA", lambda: with_chain(SVID, SVID.chain[0], IMPOSTOR.intermediate),
         "was not issued by the next one"),
    Case("the chain in another order",
         lambda: with_chain(SVID, *reversed(SVID.chain)), "that of a whole trust domain"),
    Case("below another leaf",
         below_a_leaf, "an issuer in its chain is no CA"),
    Case("more CAs than allowed", lambda: below(2, path_length=0), "longer than one of its CAs"),
    Case("a CA that may not sign", lambda: below(1, usage=(key_usage("crl_sign"), True)),
         "may not sign certificates"),
    Case("a CA without key usage", lambda: below(1, usage=None), "may not sign certificates"),
    Case("a CA without basic constraints", lambda: below(1, basic=None), "is no CA"),
    Case("more CAs than are read", lambda: below(8), "more than 8 certificates"),
    Case("signed with SHA-1's like", lambda: signed_with(hashes.SHA224()), "a hash that is not"),
    Case("a small RSA key", lambda: issue(key=rsa.generate_private_key(65537, 1024)), "1024 bits"),
    Case("another curve", lambda: issue(key=ec.generate_private_key(ec.SECP256K1())), "neither of"),
    Case("another's key", lambda: replace(SVID, key=ec_key()), "the signature is not over this"),
)  # fmt: skip


@pytest.mark.parametrize("case", GOOD, ids=lambda case: case.says)
def test_an_svid_of_the_node_proves_its_offer(case: Case) -> None:
    assert why(case.svid(), case.at) == ""


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.says)
def test_anything_else_proves_nothing_and_is_named(case: Case) -> None:
    said = why(case.svid(), case.at)
    assert case.why in said


def test_another_trust_domain_is_believed_by_its_own_bundle_and_template() -> None:
    svid = issue("/node/n1", OTHER)
    assert why(svid, other_example=OTHER.bundle) == ""
    assert "does not end at the trust bundle" in why(svid, other_example=AUTHORITY.bundle)
    elsewhere = issue(authority=OTHER)
    assert "not of" in why(elsewhere, other_example=OTHER.bundle), "it may not use our template"


def test_a_new_root_stands_beside_the_old_one() -> None:
    fresh = Authority("example.org", name="root", begin=TEN - HOUR, end=TEN + 24 * HOUR)
    both = replace(JUDGE_SVID, bundle=AUTHORITY.bundle + fresh.bundle)
    judging = spiffe(N2, both)
    for authority in (AUTHORITY, fresh):
        proof = proof_by(issue(authority=authority))
        assert judge(judging, N1, replace(OFFER, proof=proof)).why == ""
    only = Spiffe(N2, [TEMPLATE], Clock())
    only.take(read_response(response([issue("/pellicle/node/n2", fresh)])))
    assert "does not end" in judge(only, N1, replace(OFFER, proof=proof_by(SVID))).why


def test_a_proof_is_worth_something_until_its_first_certificate_expires() -> None:
    judged = judge(spiffe(N2, JUDGE_SVID), N1, replace(OFFER, proof=proof_by(SVID)))
    assert judged.until == ELEVEN.timestamp()


@pytest.mark.parametrize(
    "changes",
    [{"epoch": Epoch(4)}, {"boot_nonce": bytes(16)}, {"public_key": b"\x09" + bytes(31)}],
    ids=str,
)
def test_a_proof_is_of_one_offer(changes: dict[str, Any]) -> None:
    judging = spiffe(N2, JUDGE_SVID)
    assert "not over this offer" in judge(judging, N1, replace(OFFER, **changes)).why


def test_a_proof_is_of_one_node() -> None:
    """Replayed in n3's record, whose ID it is not; and signed by n3 in n1's name."""
    judging = spiffe(N2, JUDGE_SVID)
    n3 = NodeName("n3")
    assert f"is that of {ID}, not of" in judge(judging, n3, OFFER).why
    forged = prove(spiffe(n3, issue("/pellicle/node/n3")), N1, OFFER)
    assert "node/n3, not of" in judge(judging, N1, replace(OFFER, proof=forged)).why


def test_signatures_of_another_context_prove_nothing() -> None:
    signature = SVID.key.sign(b"an offer", ec.ECDSA(hashes.SHA256()))  # type: ignore[call-arg, arg-type]
    proof = b"\x01" + len(signature).to_bytes(2, "big") + signature + der(*SVID.chain)
    judging = spiffe(N2, JUDGE_SVID)
    assert "not over this offer" in judge(judging, N1, replace(OFFER, proof=proof)).why


PROOF = OFFER.proof
PROOFS = {
    "none": (b"", "no proof"),
    "an HMAC": (bytes(32), "another key mode"),
    "another version": (b"\x02" + PROOF[1:], "another key mode"),
    "one byte": (PROOF[:1], "another key mode"),
    "no signature": (b"\x01\x00\x00" + der(*SVID.chain), "another key mode"),
    "a signature that is too long": (b"\x01\x02\x01" + bytes(600), "another key mode"),
    "a signature alone": (b"\x01\x00\x40" + bytes(64), "has no certificate"),
    "cut off": (PROOF[:-1], "is cut off"),
    "more behind it": (PROOF + b"\x00", "does not begin a certificate"),
    "a length beyond the end": (PROOF + b"\x30\x83\xff\xff\xff", "is cut off"),
    "a length of no bytes": (PROOF + b"\x30\x80", "is not the length of a certificate"),
    "an empty certificate": (PROOF + b"\x30\x00", "cannot be read"),
    "huge": (PROOF + bytes(MAX_PROOF), "at most"),
}


@pytest.mark.parametrize("says", PROOFS)
def test_what_is_no_proof_is_named(says: str) -> None:
    proof, words = PROOFS[says]
    assert words in judge(spiffe(N2, JUDGE_SVID), N1, replace(OFFER, proof=proof)).why


def test_no_bit_of_a_proof_can_be_changed() -> None:
    judging, changed = spiffe(N2, JUDGE_SVID), bytearray(PROOF)
    for at, bit in product(range(len(PROOF)), range(8)):
        changed[at] ^= 1 << bit
        assert judge(judging, N1, replace(OFFER, proof=bytes(changed))).why, (at, bit)
        changed[at] ^= 1 << bit


@given(st.binary(max_size=2000))
def test_any_bytes_are_a_proof_or_are_refused(raw: bytes) -> None:
    for proof in (raw, b"\x01\x00\x08" + raw, PROOF[:80] + raw):
        try:
            read_proof(proof)
        except SvidError:
            continue


def test_secrets_are_never_shown() -> None:
    held = spiffe(N1, SVID)
    said = response([SVID])
    for text in (repr(held.svid), repr(read_response(said).svids[0])):
        assert "key=" not in text

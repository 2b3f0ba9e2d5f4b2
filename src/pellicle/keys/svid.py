# SPDX-License-Identifier: Apache-2.0
"""X.509-SVIDs: one that is ours, and whether a chain is a peer's, now.

    leaf ──issued by──▶ intermediate … ──issued by──▶ a certificate of the trust domain's bundle

The checks are those of RFC 5280 §6.1 that concern such a chain, and X.509-SVID §§2-5: one URI,
a SPIFFE ID with a path; no CA in the leaf, which must be there to sign; CAs that may sign, not too
many; every certificate valid at the given moment; nothing critical that is not understood here, so
name constraints are refused. The chain must stand in order; no path is searched for.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_der_private_key,
)
from cryptography.utils import CryptographyDeprecationWarning
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from pellicle.wire.spiffe import MOST_CERTIFICATES, Malformed, RawSvid, split_der
from pellicle.wire.spiffe_id import SpiffeId

T = TypeVar("T", bound=x509.ExtensionType)
Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey

LEAST_RSA_BITS, MOST_RSA_BITS = 2048, 4096
"""More would make a signature a burden for whoever checks it."""

_HASHES: dict[type[ec.EllipticCurve], type[hashes.HashAlgorithm]] = {
    ec.SECP256R1: hashes.SHA256,
    ec.SECP384R1: hashes.SHA384,
    ec.SECP521R1: hashes.SHA512,
}
_UNREADABLE = (
    ValueError,
    TypeError,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
    CryptographyDeprecationWarning,
)
"""What cryptography says of a certificate that is none, whenever it comes to look."""
_CERTIFICATE_HASHES = {"sha256", "sha384", "sha512"}
_UNDERSTOOD = {
    ExtensionOID.BASIC_CONSTRAINTS,
    ExtensionOID.KEY_USAGE,
    ExtensionOID.EXTENDED_KEY_USAGE,
    ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
}


class SvidError(ValueError):
    """Why a certificate, a chain or an SVID is not good."""

    def __init__(self, why: str, until: float = float("inf")) -> None:
        """`until`: when it may have become good, as seconds since 1970."""
        super().__init__(why)
        self.until = until


@dataclass(frozen=True, slots=True, eq=False)
class Svid:
    """An identity of this node, with its private key."""

    id: SpiffeId
    chain: tuple[x509.Certificate, ...]
    key: Key = field(repr=False)

    @classmethod
    def read(cls, raw: RawSvid) -> Svid:
        """What the Workload API says that we are; SvidError when it does not hold together."""
        chain = read_certificates(raw.chain)
        if not chain:
            raise SvidError("no certificate")
        try:
            key = load_der_private_key(raw.key, None)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise SvidError("its private key cannot be read") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey):
            raise SvidError("its private key is neither an EC nor an RSA key")
        if _spki(key.public_key()) != _spki(usable_key(chain[0])):
            raise SvidError("its private key is not that of its certificate")
        id_ = leaf_id(chain[0])
        if str(id_) != raw.spiffe_id:
            raise SvidError(f"its certificate is that of {id_}")
        return cls(id_, chain, key)

    @property
    def until(self) -> float:
        """When the first of its certificates expires."""
        return min(each.not_valid_after_utc for each in self.chain).timestamp()

    @property
    def since(self) -> float:
        """When the last of its certificates begins."""
        return max(each.not_valid_before_utc for each in self.chain).timestamp()

    @property
    def der(self) -> bytes:
        """The chain as it travels."""
        return b"".join(each.public_bytes(Encoding.DER) for each in self.chain)

    def sign(self, message: bytes) -> bytes:
        """ECDSA with the curve's own hash, or RSA-PSS."""
        if isinstance(self.key, rsa.RSAPrivateKey):
            return self.key.sign(message, _PSS, hashes.SHA256())
        return self.key.sign(message, ec.ECDSA(_hash_of(self.key.curve)))


def verify(leaf: x509.Certificate, signature: bytes, message: bytes) -> None:
    """SvidError unless the leaf's key signed `message`."""
    key = usable_key(leaf)
    try:
        if isinstance(key, rsa.RSAPublicKey):
            key.verify(signature, message, _PSS, hashes.SHA256())
        else:
            key.verify(signature, message, ec.ECDSA(_hash_of(key.curve)))
    except InvalidSignature:
        raise SvidError("the signature is not over this offer, or not by the SVID's key") from None


def read_certificates(raw: bytes, most: int = MOST_CERTIFICATES) -> tuple[x509.Certificate, ...]:
    """DER certificates that stand one after the other."""
    try:
        return tuple(_read(each) for each in split_der(raw, most))
    except Malformed as error:
        raise SvidError(str(error)) from None
    except _UNREADABLE:
        raise SvidError("what should be a certificate cannot be read") from None


def _read(raw: bytes) -> x509.Certificate:
    with warnings.catch_warnings():
        # What the library reads all the same, for now, and RFC 5280 forbids.
        warnings.simplefilter("error", CryptographyDeprecationWarning)
        certificate = x509.load_der_x509_certificate(raw)
    # The only octet that no signature covers and no parser judges: the bits that the last octet
    # of the signature, a BIT STRING at the very end, lacks. RFC 5280 has none of such signatures.
    if raw[-len(certificate.signature) - 1] != 0:
        raise SvidError("a certificate's signature does not end with an octet")
    return certificate


def check_chain(
    chain: Sequence[x509.Certificate], anchors: Sequence[x509.Certificate], at: datetime
) -> float:
    """Until when it is good, as seconds since 1970; SvidError when it is not good at `at`."""
    try:
        _check_leaf(chain[0])
        for depth, issuer in enumerate(chain[1:]):
            _check_issuer(issuer, depth, leaf_id(chain[0]).trust_domain)
            _check_issued(chain[depth], issuer)
        anchor = _anchor_of(chain[-1], anchors)
        whole = (*chain, anchor)
        _check_issuer(anchor, len(chain) - 1, leaf_id(chain[0]).trust_domain)
        for each in whole:
            _check_time(each, at)
    except SvidError:
        raise
    except _UNREADABLE:
        raise SvidError("a certificate of its chain cannot be read") from None
    return min(each.not_valid_after_utc for each in whole).timestamp()


def leaf_id(leaf: x509.Certificate) -> SpiffeId:
    """The one URI of an X.509-SVID, X.509-SVID §2."""
    uris = _uris(leaf)
    if len(uris) != 1:
        raise SvidError(f"its certificate names {len(uris)} URIs; an SVID has one")
    try:
        id_ = SpiffeId.parse(uris[0])
    except ValueError as error:
        raise SvidError(f"the URI of its certificate {error}") from None
    if not id_.path:
        raise SvidError(f"its certificate is that of a whole trust domain, {id_}")
    return id_


def usable_key(certificate: x509.Certificate) -> PublicKey:
    """The public key, if signatures by it can be checked at a bounded cost."""
    try:
        key = certificate.public_key()
    except _UNREADABLE:
        raise SvidError("the public key of its certificate cannot be read") from None
    if isinstance(key, rsa.RSAPublicKey):
        if not LEAST_RSA_BITS <= key.key_size <= MOST_RSA_BITS:
            bounds = f"{LEAST_RSA_BITS} to {MOST_RSA_BITS}"
            raise SvidError(f"an RSA key of {key.key_size} bits; {bounds} are taken")
        return key
    if isinstance(key, ec.EllipticCurvePublicKey) and type(key.curve) in _HASHES:
        return key
    raise SvidError("its key is neither of P-256, P-384 or P-521 nor an RSA key")


def _check_leaf(leaf: x509.Certificate) -> None:
    """X.509-SVID §4 and §5.2."""
    _check_critical(leaf)
    basic = _extension(leaf, x509.BasicConstraints)
    if basic is not None and basic.ca:
        raise SvidError("its certificate is a CA's, not an SVID")
    usage = _extension(leaf, x509.KeyUsage)
    if usage is None or not usage.digital_signature:
        raise SvidError("its certificate is not for signatures (digitalSignature)")
    if usage.key_cert_sign or usage.crl_sign:
        raise SvidError("its certificate may sign certificates or revocations: no SVID may")
    purposes = _extension(leaf, x509.ExtendedKeyUsage)
    wanted = {ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH}
    if purposes is not None and not wanted <= set(purposes):
        raise SvidError("its certificate is for other purposes than clientAuth and serverAuth")


def _check_issuer(issuer: x509.Certificate, depth: int, trust_domain: str) -> None:
    """X.509-SVID §4, RFC 5280 §6.1.4; `depth`: how many CAs stand between it and the leaf."""
    _check_critical(issuer)
    basic = _extension(issuer, x509.BasicConstraints)
    if basic is None or not basic.ca:
        raise SvidError("an issuer in its chain is no CA")
    if basic.path_length is not None and basic.path_length < depth:
        raise SvidError("its chain is longer than one of its CAs allows")
    usage = _extension(issuer, x509.KeyUsage)
    if usage is None or not usage.key_cert_sign:
        raise SvidError("an issuer in its chain may not sign certificates")
    for uri in _uris(issuer):
        if SpiffeId.parse(uri).trust_domain != trust_domain:
            raise SvidError(f"an issuer in its chain is of another trust domain: {uri[:300]}")


def _check_issued(subject: x509.Certificate, issuer: x509.Certificate) -> None:
    usable_key(issuer)
    algorithm = subject.signature_hash_algorithm
    if algorithm is None or algorithm.name not in _CERTIFICATE_HASHES:
        raise SvidError("a certificate of its chain is signed with a hash that is not trusted")
    try:
        subject.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        raise SvidError("a certificate of its chain was not issued by the next one") from None


def _anchor_of(last: x509.Certificate, anchors: Sequence[x509.Certificate]) -> x509.Certificate:
    for anchor in anchors:
        if anchor.subject != last.issuer:
            continue
        try:
            _check_issued(last, anchor)
        except SvidError:
            continue
        return anchor
    raise SvidError("its chain does not end at the trust bundle")


def _check_time(certificate: x509.Certificate, at: datetime) -> None:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if at < begin:
        why = f"a certificate of its chain is not valid before {_moment(begin)}"
        raise SvidError(why, until=begin.timestamp())
    if at > end:
        raise SvidError(f"a certificate of its chain expired at {_moment(end)}")


def _check_critical(certificate: x509.Certificate) -> None:
    for each in _extensions(certificate):
        if each.critical and each.oid not in _UNDERSTOOD:
            raise SvidError(f"its chain has a critical extension not known here: {_name(each)}")


def _name(extension: x509.Extension[x509.ExtensionType]) -> str:
    return str(getattr(extension.oid, "_name", extension.oid.dotted_string))


def _extensions(certificate: x509.Certificate) -> x509.Extensions:
    """They are read only now, so what is wrong with them is seen only now."""
    try:
        return certificate.extensions
    except _UNREADABLE:
        raise SvidError("the extensions of a certificate of its chain cannot be read") from None


def _extension(certificate: x509.Certificate, kind: type[T]) -> T | None:
    try:
        return _extensions(certificate).get_extension_for_class(kind).value
    except x509.ExtensionNotFound:
        return None


def _uris(certificate: x509.Certificate) -> list[str]:
    names = _extension(certificate, x509.SubjectAlternativeName)
    return [] if names is None else names.get_values_for_type(x509.UniformResourceIdentifier)


def _hash_of(curve: ec.EllipticCurve) -> hashes.HashAlgorithm:
    return _HASHES[type(curve)]()


def _spki(key: PublicKey) -> bytes:
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def _moment(when: datetime) -> str:
    return when.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


_PSS = padding.PSS(padding.MGF1(hashes.SHA256()), padding.PSS.DIGEST_LENGTH)

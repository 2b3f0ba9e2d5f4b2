# SPDX-License-Identifier: Apache-2.0
"""A SPIFFE of the tests' own: an authority that issues SVIDs, and a Workload API that serves them.

    authority = Authority("example.org")
    with WorkloadApi(socket) as api:
        api.say(response([authority.svid("/pellicle/node/n1", seconds=10)]))

The API is a real gRPC server on a real Unix socket. What it says is written here byte by byte, and
not by the code that reads it.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

Key = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STREAMS = 64
BOTH = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def ec_key() -> ec.EllipticCurvePrivateKey:
    return ec.generate_private_key(ec.SECP256R1())


def der(*certificates: x509.Certificate) -> bytes:
    return b"".join(each.public_bytes(Encoding.DER) for each in certificates)


def key_usage(*names: str) -> x509.KeyUsage:
    all_names = (
        "digital_signature", "content_commitment", "key_encipherment", "data_encipherment",
        "key_agreement", "key_cert_sign", "crl_sign", "encipher_only", "decipher_only",
    )  # fmt: skip
    return x509.KeyUsage(**{name: name in names for name in all_names})


@dataclass(frozen=True)
class Issued:
    """A certificate with its private key, and all that stands between it and the root."""

    spiffe_id: str
    chain: tuple[x509.Certificate, ...]
    key: Key
    bundle: bytes = b""

    @property
    def key_der(self) -> bytes:
        return self.key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())


@dataclass
class Wanted:
    """A certificate to be made: what an SVID has, unless told otherwise."""

    subject: str
    issuer: x509.Name | None = None
    begin: datetime | None = None
    end: datetime | None = None
    extensions: list[tuple[x509.ExtensionType, bool]] = field(default_factory=list)
    hash: hashes.HashAlgorithm = field(default_factory=hashes.SHA256)

    def made(self, key: Key, signer: Key) -> x509.Certificate:
        subject = name_of(self.subject)
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self.issuer or subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(self.begin or now - timedelta(minutes=1))
            .not_valid_after(self.end or now + timedelta(hours=1))
        )
        for extension, is_critical in self.extensions:
            builder = builder.add_extension(extension, is_critical)
        return builder.sign(signer, self.hash)


def name_of(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def san(*uris: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(each) for each in uris])


def leaf_extensions(*uris: str, **changes: Any) -> list[tuple[x509.ExtensionType, bool]]:
    """Of an SVID; `changes` by name, None leaves one away."""
    rows: dict[str, tuple[x509.ExtensionType, bool] | None] = {
        "basic": (x509.BasicConstraints(ca=False, path_length=None), True),
        "usage": (key_usage("digital_signature", "key_encipherment"), True),
        "purposes": (x509.ExtendedKeyUsage(BOTH), False),
        "names": (san(*uris), False),
    } | changes
    return [row for row in rows.values() if row is not None]


def ca_extensions(*uris: str, **changes: Any) -> list[tuple[x509.ExtensionType, bool]]:
    rows: dict[str, tuple[x509.ExtensionType, bool] | None] = {
        "basic": (x509.BasicConstraints(ca=True, path_length=None), True),
        "usage": (key_usage("key_cert_sign", "crl_sign"), True),
        "names": (san(*uris), False) if uris else None,
    } | changes
    return [row for row in rows.values() if row is not None]


class Authority:
    """The CA of a trust domain: a root, and an intermediate that issues."""

    def __init__(
        self, trust_domain: str, *, name: str = "root", begin: datetime | None = None,
        end: datetime | None = None,
    ) -> None:  # fmt: skip
        self.trust_domain = trust_domain
        self.id = f"spiffe://{trust_domain}"
        self.root_key, self.key = ec_key(), ec_key()
        far = end or datetime.now(UTC) + timedelta(days=1)
        self.begin, self.end = begin, far
        self.root = Wanted(
            f"{name} of {trust_domain}", begin=begin, end=far, extensions=ca_extensions(self.id)
        ).made(self.root_key, self.root_key)
        self.intermediate = Wanted(
            f"{name}'s own of {trust_domain}", self.root.subject, begin, far, ca_extensions(self.id)
        ).made(self.key, self.root_key)

    @property
    def bundle(self) -> bytes:
        return der(self.root)

    def svid(
        self,
        path: str,
        seconds: float = 3600,
        *,
        key: Key | None = None,
        begin: datetime | None = None,
        end: datetime | None = None,
        extensions: list[tuple[x509.ExtensionType, bool]] | None = None,
    ) -> Issued:
        """What SPIRE would issue, for so long from now."""
        made = key or ec_key()
        id_ = self.id + path
        leaf = Wanted(
            "workload",
            self.intermediate.subject,
            begin,
            end or datetime.now(UTC) + timedelta(seconds=seconds),
            leaf_extensions(id_) if extensions is None else extensions,
        ).made(made, self.key)
        return Issued(id_, (leaf, self.intermediate), made, self.bundle)


# --- the Workload API -------------------------------------------------------------------------


def field_of(number: int, value: bytes) -> bytes:
    """A field that has a length, as protobuf writes it."""
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    raw = bytearray()
    while value > 0x7F:
        raw.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*raw, value))


def response(svids: Sequence[Issued], federated: Mapping[str, bytes] | None = None) -> bytes:
    """An X509SVIDResponse."""
    parts = []
    for each in svids:
        texts = (each.spiffe_id.encode(), der(*each.chain), each.key_der, each.bundle)
        parts.append(field_of(1, b"".join(field_of(n, text) for n, text in enumerate(texts, 1))))
    for name, bundle in (federated or {}).items():
        parts.append(field_of(3, field_of(1, name.encode()) + field_of(2, bundle)))
    return b"".join(parts)


class WorkloadApi:
    """Serves whoever connects to the socket, and says so again to all when it changes."""

    def __init__(self, socket: Path) -> None:
        self.socket = socket
        self.asked = 0
        """Streams that were ever opened."""
        self._said: bytes | grpc.StatusCode = b""
        self._number = 0
        self._changed = threading.Condition()
        self._is_down = False
        self._server: grpc.Server | None = None

    def say(self, what: bytes | grpc.StatusCode) -> None:
        """To all streams now, and to each that is opened later; a code ends them."""
        with self._changed:
            self._said, self._number = what, self._number + 1
            self._changed.notify_all()

    def start(self) -> None:
        self._is_down = False
        with suppress(FileNotFoundError):
            self.socket.unlink()
        server = grpc.server(ThreadPoolExecutor(STREAMS))
        handler = grpc.unary_stream_rpc_method_handler(
            self._stream, request_deserializer=bytes, response_serializer=bytes
        )
        server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", {"FetchX509SVID": handler}),)
        )
        assert server.add_insecure_port(f"unix:{self.socket}")
        server.start()
        self._server = server

    def stop(self) -> None:
        """As if the SPIRE agent had been killed."""
        with self._changed:
            self._is_down = True
            self._changed.notify_all()
        if self._server:
            self._server.stop(0).wait()
            self._server = None
        with suppress(FileNotFoundError):
            self.socket.unlink()

    def _stream(self, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        assert request == b""
        if ("workload.spiffe.io", "true") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
        seen = 0
        self.asked += 1
        while context.is_active():
            with self._changed:
                self._changed.wait_for(
                    lambda seen=seen: self._number != seen or self._is_down, timeout=1
                )
                if self._is_down:
                    return
                if self._number == seen:
                    continue
                seen, said = self._number, self._said
            if isinstance(said, grpc.StatusCode):
                context.abort(said, "no identity issued")
            yield said

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.stop()

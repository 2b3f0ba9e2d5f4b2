# SPDX-License-Identifier: Apache-2.0
"""The SPIFFE Workload API's one message that matters here, and what is packed in it.

message X509SVIDResponse { repeated X509SVID svids = 1; map<string, bytes> federated_bundles = 3; }
message X509SVID { string spiffe_id = 1; bytes x509_svid = 2; bytes x509_svid_key = 3;
                   bytes bundle = 4; string hint = 5; }

Certificates stand one after the other, each as DER: the tag 0x30, a length, so many bytes.
Unknown fields are passed over, as protobuf wants it; everything else that is odd is `Malformed`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

METHOD = "/SpiffeWorkloadAPI/FetchX509SVID"
HEADER = ("workload.spiffe.io", "true")
"""Without it the API answers nobody: a browser that was misled cannot send it."""
REQUEST = b""
"""An X509SVIDRequest has no fields."""
MAX_RESPONSE = 1 << 20
MOST_CERTIFICATES = 8
"""In one chain."""

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_SEQUENCE = 0x30


class Malformed(ValueError):  # noqa: N818  a word for what the bytes are
    """Not what the Workload API sends; says what is wrong."""


@dataclass(frozen=True, slots=True)
class RawSvid:
    """One identity as it was sent: nothing in it is checked."""

    spiffe_id: str
    chain: bytes
    """DER certificates, the leaf first."""
    key: bytes = field(repr=False)
    """PKCS#8, DER."""
    bundle: bytes
    """DER certificates."""


@dataclass(frozen=True, slots=True)
class Response:
    """All that the workload is, and whom it may believe."""

    svids: tuple[RawSvid, ...]
    federated: Mapping[str, bytes]
    """Bundles of other trust domains, by their ID."""


def read_response(raw: bytes) -> Response:
    """One message of the stream."""
    if len(raw) > MAX_RESPONSE:
        raise Malformed(f"a response of {len(raw)} bytes; at most {MAX_RESPONSE} are read")
    svids: list[RawSvid] = []
    federated: dict[str, bytes] = {}
    for number, value in _fields(raw):
        if number == 1:
            svids.append(_svid(value))
        elif number == 3:
            entry = dict(_fields(value))
            federated[_text(entry.get(1, b""))] = entry.get(2, b"")
    return Response(tuple(svids), MappingProxyType(federated))


def split_der(raw: bytes, most: int = MOST_CERTIFICATES) -> tuple[bytes, ...]:
    """The DER elements that stand one after the other in `raw`."""
    found: list[bytes] = []
    at = 0
    while at < len(raw):
        if len(found) == most:
            raise Malformed(f"more than {most} certificates")
        end = _element_end(raw, at)
        found.append(raw[at:end])
        at = end
    return tuple(found)


def _element_end(raw: bytes, at: int) -> int:
    if raw[at] != _SEQUENCE or at + 2 > len(raw):
        raise Malformed(f"byte {at} does not begin a certificate")
    length, begin = raw[at + 1], at + 2
    if length & 0x80:
        count = length & 0x7F
        if not 1 <= count <= 3:
            raise Malformed(f"byte {at + 1} is not the length of a certificate")
        length, begin = int.from_bytes(raw[begin : begin + count], "big"), begin + count
    if begin + length > len(raw):
        raise Malformed(f"a certificate is cut off: {len(raw) - at} bytes of {begin + length - at}")
    return begin + length


def _svid(raw: bytes) -> RawSvid:
    said = dict(_fields(raw))
    return RawSvid(_text(said.get(1, b"")), said.get(2, b""), said.get(3, b""), said.get(4, b""))


def _text(raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Malformed("a text is not UTF-8") from None


def _fields(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields that have a length, by number; others are passed over."""
    at = 0
    while at < len(raw):
        tag, at = _varint(raw, at)
        kind = tag & 7
        if kind == _VARINT:
            _, at = _varint(raw, at)
            continue
        if kind == _BYTES:
            length, at = _varint(raw, at)
        elif kind in {_FIXED64, _FIXED32}:
            length = 8 if kind == _FIXED64 else 4
        else:
            raise Malformed(f"a field of wire type {kind}")
        if at + length > len(raw):
            raise Malformed(f"a field of {length} bytes is cut off")
        if kind == _BYTES:
            yield tag >> 3, raw[at : at + length]
        at += length


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(raw):
            raise Malformed("a number is cut off")
        byte, at = raw[at], at + 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise Malformed("a number of more than 64 bits")

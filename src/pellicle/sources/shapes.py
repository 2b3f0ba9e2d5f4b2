# SPDX-License-Identifier: Apache-2.0
"""The shapes of the resources: which fields there are, which must be, and nothing else.

`shape()` takes a tree of plain text and gives one of the structs, or a `FieldError` that says
which field is wrong and what was probably meant. What the texts mean is another matter.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

from pellicle.values import FieldError, did_you_mean, shown
from pellicle.wire.yaml import Tree

U32 = Annotated[int, Meta(ge=0, le=(1 << 32) - 1)]
PacketLength = Annotated[int, Meta(ge=1280, le=(1 << 16) - 1)]
"""RFC 8200 §5: every IPv6 link carries 1280; no IPv4 packet is longer than the other."""
S = TypeVar("S", bound=Struct)


class Shape(Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    """Any field that is not declared is refused."""


class NamedShape(Shape, frozen=True):
    name: str


class NamespacedShape(Shape, frozen=True):
    namespace: str
    name: str


class OfferShape(Shape, frozen=True):
    epoch: U32
    boot_nonce: str
    public_key: str
    proof: str = ""


class NodeSpec(Shape, frozen=True):
    addresses: list[str]
    pod_cidrs: list[str] = msgspec.field(name="podCIDRs", default_factory=list)
    ciphers: list[str] | None = None
    longest_packet: PacketLength | None = None
    offers: list[OfferShape] = []


class AttachmentShape(Shape, frozen=True):
    container_id: str = msgspec.field(name="containerID")
    interface: str
    host_device: str
    pod_mac: str = msgspec.field(name="podMAC")


class EndpointSpec(Shape, frozen=True):
    node: str
    addresses: list[str]
    identity: U32
    labels: dict[str, str] = {}
    attachment: AttachmentShape | None = None


class IdentitySpec(Shape, frozen=True):
    labels: dict[str, str]


class SelectorShape(Shape, frozen=True):
    nodes: list[str] = []
    namespaces: list[str] = []
    labels: dict[str, str] = {}
    cidrs: list[str] = []


class EncryptionPolicySpec(Shape, frozen=True):
    action: str
    between: list[SelectorShape] = []
    ports: list[str] = []


class NodeShape(Shape, frozen=True):
    api_version: str
    kind: str
    metadata: NamedShape
    spec: NodeSpec


class EndpointShape(Shape, frozen=True):
    api_version: str
    kind: str
    metadata: NamespacedShape
    spec: EndpointSpec


class IdentityShape(Shape, frozen=True):
    api_version: str
    kind: str
    metadata: NamedShape
    spec: IdentitySpec


class EncryptionPolicyShape(Shape, frozen=True):
    api_version: str
    kind: str
    metadata: NamedShape
    spec: EncryptionPolicySpec


for _kind in (NodeShape, EndpointShape, IdentityShape, EncryptionPolicyShape):
    # msgspec learns a struct when it is first asked for one, and falls over (0.22, SIGSEGV) if
    # another thread asks meanwhile: so it learns them here.
    msgspec.json.Decoder(_kind)


def shape(tree: Tree, kind: type[S]) -> S:
    """`tree` as a `kind`."""
    try:
        return msgspec.convert(tree, kind, strict=False)
    except msgspec.ValidationError as error:
        message, _, path = str(error).partition(" - at `$.")
        raise FieldError(
            path.rstrip("`") or "document", _why(message, path.rstrip("`"), tree, kind)
        ) from None


_WORDS = {"array": "a list", "object": "a mapping", "str": "text", "int": "a whole number"}


def _why(message: str, path: str, tree: Tree, kind: type[Struct]) -> str:
    """msgspec's message, in the words of whoever wrote the file."""
    if match := re.fullmatch(r"Object contains unknown field `(.*)`", message, re.DOTALL):
        return f"unknown field {shown(match[1])}: {did_you_mean(match[1], _fields(kind, path))}"
    if match := re.fullmatch(r"Object missing required field `(.*)`", message):
        return f'"{match[1]}" is missing'
    if match := re.fullmatch(r"Expected `(\w+)(?: \| null)?`, got `(\w+)`", message):
        wanted, got = (_WORDS.get(word, word) for word in match.groups())
        return f"must be {wanted}, is {'empty' if _at(tree, path) == '' else got}"
    return message[:1].lower() + message[1:]


def _steps(path: str) -> list[str]:
    """`spec.offers[0].epoch` → spec, offers, [0], epoch."""
    return re.findall(r"\[[^\]]*\]|[^.\[\]]+", path)


def _at(tree: Tree, path: str) -> Tree | None:
    here: Any = tree
    for step in _steps(path):
        if step == "[...]":
            return None
        here = here[int(step[1:-1])] if step.startswith("[") else here.get(step)
    return here  # type: ignore[no-any-return]


def _fields(kind: Any, path: str) -> list[str]:
    """The names of the fields that may stand at `path`."""
    for step in _steps(path):
        if step.startswith("["):
            kind = get_args(kind)[-1]
        else:
            kind = next(f.type for f in msgspec.structs.fields(kind) if f.encode_name == step)
        options = [
            arm for arm in get_args(kind) if isinstance(arm, type) and issubclass(arm, Struct)
        ]
        kind = options[0] if options and not isinstance(kind, type) and _is_union(kind) else kind
    return [f.encode_name for f in msgspec.structs.fields(kind)]


def _is_union(kind: Any) -> bool:
    return type(None) in get_args(kind)

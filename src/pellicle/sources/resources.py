# SPDX-License-Identifier: Apache-2.0
"""The resources of `apiVersion: pellicle.dev/v1`: YAML text ↔ `Node`, `Endpoint`, `Identity`,
`EncryptionPolicy`.

Pure. Whatever the text is, the answer is documents and rows of `Rejected`; nothing raises.
What is written here is read back as the same fact, by Pellicle and by any YAML reader.
Checks that need more than one resource are in `world`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from itertools import combinations, pairwise
from types import MappingProxyType
from typing import Generic, TypeAlias, TypeVar

from pellicle import exemptions, values
from pellicle.facts import (
    FIRST_CLAIMED_IDENTITY,
    Attachment,
    Cipher,
    EncryptionPolicy,
    Endpoint,
    EndpointName,
    Epoch,
    Identity,
    IdentityNumber,
    Node,
    NodeName,
    Offer,
    PolicyAction,
    PolicyName,
    Rejected,
    Selector,
)
from pellicle.identity import (
    LAST_CLAIMED_IDENTITY,
    NAMESPACE_LABEL,
    RESERVED,
    LabelError,
    canonical,
    checked,
    is_claimable,
)
from pellicle.sources.shapes import (
    AttachmentShape,
    EncryptionPolicyShape,
    EndpointShape,
    IdentityShape,
    NodeShape,
    OfferShape,
    SelectorShape,
    shape,
)
from pellicle.values import FieldError, did_you_mean, shown
from pellicle.wire.yaml import Tree, YamlError, documents

API_VERSION = "pellicle.dev/v1"
MAX_BYTES = 256 * 1024
"""Of one file. A record of a node or pod has less than 4 KiB."""
MAX_FILE_NAME = 240
"""Of the 255 bytes that Linux file systems allow, .yaml taken off."""
MAX_OFFERS = 2
MAX_PROOF = 16 * 1024
MAX_SIDES = 2
MAX_PORTS = 1024
"""Of one policy: in the datapath each has a row."""
MAX_SHOWN = 400

Resource: TypeAlias = Node | Endpoint | Identity | EncryptionPolicy
R_co = TypeVar("R_co", bound=Resource, covariant=True)


@dataclass(frozen=True, slots=True)
class Document(Generic[R_co]):
    """A resource and where it is written."""

    source: str
    """The path, relative to the directory."""
    position: int
    """In the file; the first is 1."""
    resource: R_co


@dataclass(frozen=True, slots=True)
class Sheet:
    """What one file says."""

    documents: tuple[Document[Resource], ...] = ()
    rejected: tuple[Rejected, ...] = ()


def read(source: str, raw: bytes) -> Sheet:
    """Everything in the file `source` that is good, and everything that is not."""
    text = _text(raw)
    if isinstance(text, FieldError):
        return Sheet(rejected=(_rejected(source, "file", text),))
    good: list[Document[Resource]] = []
    bad: list[Rejected] = []
    trees = enumerate(documents(text), 1)
    while True:
        try:
            number, tree = next(trees)
        except StopIteration:
            break
        except YamlError as error:
            bad.append(_rejected(source, "file", error))
            break
        try:
            good.append(Document(source, number, _resource(tree)))
        except (FieldError, LabelError) as error:
            bad.append(_rejected(source, _name(tree, number), error))
    return Sheet(tuple(good), tuple(bad))


def title(resource: Resource) -> str:
    """How a person calls it: `node n1`, `endpoint default/p1`, `identity 4711`."""
    if isinstance(resource, Identity):
        return f"identity {resource.number}"
    if isinstance(resource, EncryptionPolicy):
        return f"encryption policy {resource.name}"
    return f"{type(resource).__name__.lower()} {resource.name}"


def place(resource: Resource) -> str:
    """The path, relative to the directory, of the file that is `resource`'s own."""
    if isinstance(resource, Identity):
        return f"identities/{resource.number}.yaml"
    if isinstance(resource, Node):
        return f"nodes/{_file(resource.name)}"
    if isinstance(resource, EncryptionPolicy):
        return f"policies/{_file(resource.name)}"
    name = resource.name
    return f"endpoints/{resource.node}/{_file(f'{name.namespace}.{name.name}')}"


def _file(name: str) -> str:
    """A file name for `name`: itself, unless that is longer than a file system allows."""
    if len(name) > MAX_FILE_NAME:
        name = f"{name[: MAX_FILE_NAME - 17]}-{sha256(name.encode()).hexdigest()[:16]}"
    return f"{name}.yaml"


def _text(raw: bytes) -> str | FieldError:
    if len(raw) > MAX_BYTES:
        return FieldError(
            "file", f"more than {MAX_BYTES // 1024} KiB: write fewer documents into one file"
        )
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        return FieldError("file", f"not UTF-8 text (byte {error.start})")
    if not text.strip():
        return FieldError(
            "file", "empty: cut off, or not written yet? Remove it if nothing belongs here"
        )
    if not text.endswith("\n"):
        return FieldError("file", "the last line has no end: cut off? End it with a newline")
    return text


def _rejected(source: str, name: str, error: ValueError) -> Rejected:
    # Both quote what is written there, and are shown on terminals.
    return Rejected(
        source, values.printable(name, MAX_SHOWN), values.printable(str(error), MAX_SHOWN)
    )


def _name(tree: Tree, number: int) -> str:
    """What a rejected document calls itself, as far as it can be told."""
    if isinstance(tree, dict) and isinstance(metadata := tree.get("metadata"), dict):
        parts = (metadata.get("namespace"), metadata.get("name"))
        words = [part for part in parts if isinstance(part, str)]
        if words:
            kind = tree.get("kind")
            return f"{kind.lower() if isinstance(kind, str) else 'document'} {'/'.join(words)}"
    return f"document {number}"


def _resource(tree: Tree) -> Resource:
    if not isinstance(tree, dict):
        raise FieldError(
            "document", "is empty" if tree == "" else "must be a mapping (apiVersion, kind, …)"
        )
    version, kind = tree.get("apiVersion"), tree.get("kind")
    if version != API_VERSION:
        said = shown(version) if isinstance(version, str) else "missing"
        raise FieldError("apiVersion", f"is {said}; this version reads {API_VERSION}")
    if not isinstance(kind, str):
        raise FieldError("kind", f"is missing; known are {', '.join(_KINDS)}")
    if kind not in _KINDS:
        raise FieldError("kind", f"{shown(kind)} is not known: {did_you_mean(kind, _KINDS)}")
    return _KINDS[kind](tree)


def _node(tree: Tree) -> Node:
    said = shape(tree, NodeShape)
    spec = said.spec
    return _consistent(
        Node(
            NodeName(values.dns_name("metadata.name", said.metadata.name)),
            values.one_per_family(
                "spec.addresses", values.each("spec.addresses", spec.addresses, values.address)
            ),
            values.each("spec.podCIDRs", spec.pod_cidrs, values.network),
            values.each("spec.offers", spec.offers, _offer),
            (Cipher.CHACHA20_POLY1305,) if spec.ciphers is None else _ciphers(spec.ciphers),
            spec.longest_packet,
        )
    )


def _consistent(node: Node) -> Node:
    for one, other in combinations(node.pod_cidrs, 2):
        if one.version == other.version and one.overlaps(other):
            raise FieldError("spec.podCIDRs", f"{one} and {other} overlap")
    for address in node.addresses:
        if any(address in cidr for cidr in node.pod_cidrs):
            raise FieldError("spec.addresses", f"{address} lies in this node's own pod CIDRs")
    if len(node.offers) > MAX_OFFERS:
        raise FieldError("spec.offers", f"{len(node.offers)} offers; at most {MAX_OFFERS}")
    for older, newer in pairwise(node.offers):
        if older.epoch >= newer.epoch:
            raise FieldError("spec.offers", f"epochs {older.epoch}, {newer.epoch} do not ascend")
    return node


def _offer(field: str, said: OfferShape) -> Offer:
    if said.epoch == 0:
        raise FieldError(f"{field}.epoch", "epochs start at 1")
    proof = values.base64(f"{field}.proof", said.proof)
    if len(proof) > MAX_PROOF:
        raise FieldError(f"{field}.proof", f"is longer than {MAX_PROOF} bytes")
    return Offer(
        Epoch(said.epoch),
        values.hexadecimal(f"{field}.bootNonce", said.boot_nonce, 16),
        values.base64(f"{field}.publicKey", said.public_key, 32),
        proof,
    )


def _ciphers(said: list[str]) -> tuple[Cipher, ...]:
    if not said:
        raise FieldError(
            "spec.ciphers", f"is empty; leave it away, or name some of {', '.join(Cipher)}"
        )
    for name in said:
        if name not in list(Cipher):
            raise FieldError(
                "spec.ciphers", f"{shown(name)} is not known: {did_you_mean(name, Cipher)}"
            )
    if len(set(said)) < len(said):
        raise FieldError("spec.ciphers", "one is given twice")
    return tuple(Cipher(name) for name in said)


def _endpoint(tree: Tree) -> Endpoint:
    said = shape(tree, EndpointShape)
    spec = said.spec
    namespace = values.dns_label("metadata.namespace", said.metadata.namespace)
    canonical(namespace, spec.labels)
    return Endpoint(
        EndpointName(namespace, values.dns_name("metadata.name", said.metadata.name)),
        NodeName(values.dns_name("spec.node", spec.node)),
        values.one_per_family(
            "spec.addresses", values.each("spec.addresses", spec.addresses, values.address)
        ),
        _claimed("spec.identity", spec.identity),
        MappingProxyType(dict(sorted(spec.labels.items()))),
        None if spec.attachment is None else _attachment(spec.attachment),
    )


def _attachment(said: AttachmentShape) -> Attachment:
    return Attachment(
        values.word("spec.attachment.containerID", said.container_id, 256),
        values.word("spec.attachment.interface", said.interface, 15),
        values.word("spec.attachment.hostDevice", said.host_device, 15),
        values.mac("spec.attachment.podMAC", said.pod_mac),
    )


def _claimed(field: str, number: int) -> IdentityNumber:
    if is_claimable(number):
        return IdentityNumber(number)
    reserved = RESERVED.get(IdentityNumber(number))
    named = f' and means "{reserved}"' if reserved else ""
    bounds = f"labels have {FIRST_CLAIMED_IDENTITY} to {LAST_CLAIMED_IDENTITY}"
    raise FieldError(field, f"{number} is reserved{named}: {bounds}")


def _identity(tree: Tree) -> Identity:
    said = shape(tree, IdentityShape)
    name = said.metadata.name
    if not (name.isascii() and name.isdigit() and len(name) <= 10) or name != str(int(name)):
        raise FieldError("metadata.name", f"{shown(name)} is not a number")
    return Identity(_claimed("metadata.name", int(name)), checked(said.spec.labels))


def _encryption_policy(tree: Tree) -> EncryptionPolicy:
    said = shape(tree, EncryptionPolicyShape)
    spec = said.spec
    if spec.action not in list(PolicyAction):
        hint = did_you_mean(spec.action, PolicyAction)
        raise FieldError("spec.action", f"{shown(spec.action)} is not known: {hint}")
    if len(spec.between) > MAX_SIDES:
        raise FieldError("spec.between", f"{len(spec.between)} selectors; at most {MAX_SIDES}")
    listed = values.each("spec.ports", spec.ports, exemptions.ports)
    if sum(each.last - each.first + 1 for each in listed) > MAX_PORTS:
        why = f"more than {MAX_PORTS} ports: leave them away, or make several policies"
        raise FieldError("spec.ports", why)
    return EncryptionPolicy(
        PolicyName(values.dns_name("metadata.name", said.metadata.name)),
        PolicyAction(spec.action),
        values.each("spec.between", spec.between, _selector),
        listed,
    )


def _selector(field: str, said: SelectorShape) -> Selector:
    if NAMESPACE_LABEL in said.labels:
        raise FieldError(f"{field}.labels", f"{NAMESPACE_LABEL} is given as namespaces")
    found = Selector(
        tuple(map(NodeName, values.each(f"{field}.nodes", said.nodes, values.dns_name))),
        values.each(f"{field}.namespaces", said.namespaces, values.dns_label),
        checked(said.labels),
        values.each(f"{field}.cidrs", said.cidrs, values.any_network),
    )
    if found == Selector():
        raise FieldError(field, "selects nothing: give nodes, namespaces, labels or cidrs")
    return found


_KINDS: Mapping[str, Callable[[Tree], Resource]] = MappingProxyType(
    {
        "Node": _node,
        "Endpoint": _endpoint,
        "Identity": _identity,
        "EncryptionPolicy": _encryption_policy,
    }
)

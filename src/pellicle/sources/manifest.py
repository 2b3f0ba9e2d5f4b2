# SPDX-License-Identifier: Apache-2.0
"""A resource as YAML text: what `resources` reads back as the same fact, and so does any reader."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator
from typing import Any

import yaml

from pellicle import exemptions
from pellicle.facts import EncryptionPolicy, Endpoint, Identity, Node, Selector
from pellicle.sources.resources import API_VERSION, Resource, read, title


def write(resource: Resource) -> str:
    """The text of `resource`; `ValueError` when nobody would be able to read it back."""
    kind, metadata, spec = _written(resource)
    tree = {"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec}
    text = str(
        yaml.dump(
            tree,
            Dumper=_Dumper,
            default_flow_style=None,
            sort_keys=False,
            width=1 << 20,
            allow_unicode=True,
        )
    )
    sheet = read(title(resource), text.encode())
    if sheet.rejected:
        raise ValueError(f"{title(resource)}: {sheet.rejected[0].why}")
    return text


class _Dumper(getattr(yaml, "CSafeDumper", yaml.SafeDumper)):  # type: ignore[misc]
    """Block style outside, flow style for the leaves; no anchors, which no one could read."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _written(resource: Resource) -> tuple[str, dict[str, str], dict[str, Any]]:
    """(kind, metadata, spec)."""
    if isinstance(resource, Identity):
        return "Identity", {"name": str(resource.number)}, {"labels": dict(resource.labels)}
    if isinstance(resource, Node):
        return "Node", {"name": resource.name}, dict(_node_spec(resource))
    if isinstance(resource, EncryptionPolicy):
        return "EncryptionPolicy", {"name": resource.name}, dict(_policy_spec(resource))
    name = resource.name
    metadata = {"namespace": name.namespace, "name": name.name}
    return "Endpoint", metadata, dict(_endpoint_spec(resource))


def _node_spec(node: Node) -> Iterator[tuple[str, Any]]:
    yield "addresses", [str(address) for address in node.addresses]
    yield "podCIDRs", [str(cidr) for cidr in node.pod_cidrs]
    yield "ciphers", [str(cipher) for cipher in node.ciphers]
    if node.longest is not None:
        yield "longestPacket", node.longest
    yield (
        "offers",
        [
            {
                "epoch": offer.epoch,
                "bootNonce": offer.boot_nonce.hex(),
                "publicKey": b64encode(offer.public_key).decode(),
                "proof": b64encode(offer.proof).decode(),
            }
            for offer in node.offers
        ],
    )


def _endpoint_spec(endpoint: Endpoint) -> Iterator[tuple[str, Any]]:
    yield "node", endpoint.node
    yield "addresses", [str(address) for address in endpoint.addresses]
    yield "identity", endpoint.identity
    yield "labels", dict(endpoint.labels)
    if (attachment := endpoint.attachment) is not None:
        yield (
            "attachment",
            {
                "containerID": attachment.container_id,
                "interface": attachment.interface,
                "hostDevice": attachment.host_device,
                "podMAC": attachment.pod_mac,
            },
        )


def _policy_spec(policy: EncryptionPolicy) -> Iterator[tuple[str, Any]]:
    yield "action", str(policy.action)
    if policy.between:
        yield "between", [dict(_selector_fields(each)) for each in policy.between]
    if policy.ports:
        yield "ports", [exemptions.ports_text(each) for each in policy.ports]


def _selector_fields(selector: Selector) -> Iterator[tuple[str, Any]]:
    for name in ("nodes", "namespaces", "cidrs"):
        if listed := getattr(selector, name):
            yield name, [str(each) for each in listed]
    if selector.labels:
        yield "labels", dict(selector.labels)

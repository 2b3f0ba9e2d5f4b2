# SPDX-License-Identifier: Apache-2.0
"""Resources: what is written is read back, by us and by others, and has a place."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
import yaml
from hypothesis import given

from pellicle.facts import (
    Cipher,
    EncryptionPolicy,
    EndpointName,
    Epoch,
    Node,
    NodeName,
    PolicyAction,
    PolicyName,
    Ports,
    Selector,
)
from pellicle.sources.manifest import write
from pellicle.sources.resources import (
    MAX_FILE_NAME,
    Document,
    Resource,
    place,
    read,
    title,
)
from tests.pure.sources.facts_made import n, node, offer, pod, resources
from tests.pure.sources.texts import ENDPOINT, IDENTITY, NODE, POLICY


def test_a_node_is_read() -> None:
    (found,) = read("nodes/n1.yaml", NODE.encode()).documents
    assert found == Document(
        "nodes/n1.yaml",
        1,
        Node(
            NodeName("n1"),
            (ip_address("192.0.2.1"), ip_address("2001:db8::1")),
            (ip_network("10.244.1.0/24"), ip_network("fd00:244:0:1::/64")),
            (offer(3),),
            (Cipher.CHACHA20_POLY1305,),
            None,
        ),
    )


def test_a_node_says_what_it_can_do() -> None:
    text = NODE.replace("[chacha20-poly1305]", "[aes-256-gcm, chacha20-poly1305]")
    (found,) = read("x", f"{text}  longestPacket: 2046\n".encode()).documents
    assert isinstance(found.resource, Node)
    assert found.resource.ciphers == (Cipher.AES_256_GCM, Cipher.CHACHA20_POLY1305)
    assert found.resource.longest == 2046
    assert "longestPacket: 2046" in write(found.resource)
    assert "longestPacket" not in write(replace(found.resource, longest=None))


def test_an_endpoint_is_read() -> None:
    (found,) = read("x", ENDPOINT.encode()).documents
    expected = pod("p1", "n1", "10.244.1.2", "fd00:244:0:1::2", app="web")
    assert replace(found.resource, attachment=None) == expected  # type: ignore[type-var]
    # YAML 1.1 would have it that this is a number of seconds.
    assert found.resource.attachment.pod_mac == "12:34:56:01:02:03"  # type: ignore[union-attr]


def test_a_policy_is_read() -> None:
    (found,) = read("policies/x.yaml", POLICY.encode()).documents
    assert found.resource == EncryptionPolicy(
        PolicyName("shop-to-bank"),
        PolicyAction.OWN_KEYS,
        (
            Selector(namespaces=("shop",), labels={"app": "web"}),
            Selector(
                nodes=(NodeName("n2"),),
                cidrs=(ip_network("10.0.5.0/24"), ip_network("fd00:5::/64")),
            ),
        ),
        (Ports(6, 443, 443), Ports(17, 8000, 8010)),
    )
    assert place(found.resource) == "policies/shop-to-bank.yaml"
    assert title(found.resource) == "encryption policy shop-to-bank"


def test_several_documents_stand_in_one_file() -> None:
    sheet = read("all.yaml", f"{NODE}---\n{ENDPOINT}---\n{IDENTITY}".encode())
    assert [title(found.resource) for found in sheet.documents] == [
        "node n1",
        "endpoint default/p1",
        "identity 4711",
    ]
    assert [found.position for found in sheet.documents] == [1, 2, 3]
    assert sheet.rejected == ()


def test_a_bad_document_does_not_take_the_others_with_it() -> None:
    sheet = read("all.yaml", f"{NODE}---\nkind: Nod\n---\n{IDENTITY}---\n[1\n".encode())
    assert [title(found.resource) for found in sheet.documents] == ["node n1", "identity 4711"]
    assert [row.name for row in sheet.rejected] == ["document 2", "file"]


@given(resources)
def test_what_is_written_is_read_back(resource: Resource) -> None:
    sheet = read("x", write(resource).encode())
    assert sheet.rejected == ()
    assert [found.resource for found in sheet.documents] == [resource]


@given(resources)
def test_what_is_written_means_the_same_to_any_yaml_reader(resource: Resource) -> None:
    """Others guess at types: whatever could be taken for something else is quoted."""
    tree = yaml.safe_load(write(resource))
    assert tree["kind"] == type(resource).__name__
    texts = [tree["metadata"]["name"], *tree["spec"].get("labels", {}).values()]
    texts += tree["spec"].get("addresses", [])
    texts += [made["bootNonce"] for made in tree["spec"].get("offers", [])]
    assert all(isinstance(text, str) for text in texts)


def test_nothing_is_written_that_could_not_be_read() -> None:
    for broken in (
        node("N1", "192.0.2.1"),
        node("n1"),
        replace(n(1), offers=(offer(2), offer(1))),
        replace(n(1), offers=(replace(offer(1), epoch=Epoch(0)),)),
        pod("../../etc/passwd", "n1", "10.244.1.2"),
        pod("p1", "..", "10.244.1.2"),
        replace(pod("p1", "n1", "10.244.1.2"), identity=2),  # type: ignore[arg-type]
    ):
        with pytest.raises(ValueError, match=r"node|endpoint"):
            write(broken)


def test_every_resource_has_a_file_of_its_own() -> None:
    assert place(n(1)) == "nodes/n1.yaml"
    assert place(pod("p1", "n2", "10.244.2.2", namespace="web")) == "endpoints/n2/web.p1.yaml"
    assert [place(d.resource) for d in read("x", IDENTITY.encode()).documents] == [
        "identities/4711.yaml"
    ]


def test_the_longest_names_still_have_files() -> None:
    long = ".".join(["a" * 63] * 3 + ["b" * 61])
    one = replace(pod("p", "n1", "10.0.0.2"), name=EndpointName("n" * 63, long))
    other = replace(one, name=EndpointName("n" * 63, long[:-1] + "c"))
    for resource in (one, other, node(long, "192.0.2.1")):
        assert read("x", write(resource).encode()).documents[0].resource == resource
        assert len(place(resource).split("/")[-1]) <= MAX_FILE_NAME + len(".yaml")
    assert place(one) != place(other)

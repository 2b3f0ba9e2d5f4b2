# SPDX-License-Identifier: Apache-2.0
"""Resources: every mistake has one clear answer, and no text is too bad to be read."""

from __future__ import annotations

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from pellicle.sources.manifest import write
from pellicle.sources.resources import (
    MAX_BYTES,
    read,
)
from tests.pure.sources.texts import ENDPOINT, IDENTITY, NODE, POLICY, why


@given(st.binary(max_size=400))
@example(b"\xff\xfe")
@example(b"\xef\xbb\xbf\n")
def test_whatever_the_bytes_reading_never_raises(raw: bytes) -> None:
    sheet = read("x", raw)
    assert (
        sheet.documents
        or sheet.rejected
        or raw.strip().startswith((b"#", b"%", b"\xef", b"-", b"."))
    )


_scalars = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["1", "-1", "9" * 5000, "1.5", "10.0.0.1", "10.0.0.0/8", "::/0", "n1", "%", "/"]
    ),
)
_trees = st.recursive(
    _scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
)


@st.composite
def mutilated(draw: st.DrawFn) -> str:
    """A good document of which one field, at any depth, is replaced, added or taken away."""
    tree = yaml.safe_load(draw(st.sampled_from([NODE, ENDPOINT, IDENTITY, POLICY])))
    here = tree
    while True:
        keys = list(here) if isinstance(here, dict) else list(range(len(here)))
        key = draw(st.sampled_from(keys)) if keys else None
        inside = key is not None and isinstance(here[key], (dict, list)) and here[key]
        if inside and draw(st.booleans()):
            here = here[key]
            continue
        action = draw(st.sampled_from(["replace", "add", "remove"]))
        if action == "remove" and key is not None:
            del here[key]
        elif isinstance(here, dict):
            here[key if action == "replace" and key is not None else draw(st.text(max_size=8))] = (
                draw(_trees)
            )
        else:
            here.append(draw(_trees))
        return yaml.safe_dump(tree)


@given(mutilated())
@settings(max_examples=300)
def test_a_mutilated_document_is_read_or_rejected_once(text: str) -> None:
    sheet = read("x", text.encode())
    assert len(sheet.documents) + len(sheet.rejected) == 1
    for found in sheet.documents:
        assert read("x", write(found.resource).encode()).documents[0].resource == found.resource


@given(st.sampled_from([NODE, ENDPOINT, IDENTITY, POLICY]), st.data())
def test_a_file_cut_off_anywhere_but_at_a_line_is_noticed(text: str, data: st.DataObject) -> None:
    cut = data.draw(st.integers(0, len(text) - 1).filter(lambda at: text[at - 1 : at] != "\n"))
    sheet = read("x", text[:cut].encode())
    assert sheet.documents == ()
    assert "cut off" in sheet.rejected[0].why


REJECTED = [
    # The file.
    (b"", "file: file: empty: cut off"),
    (b"\n\n", "file: file: empty: cut off"),
    (b"\xff\xfe\x00", "file: file: not UTF-8 text"),
    (b"a: b", "file: file: the last line has no end: cut off"),
    (b"# " + b"x" * MAX_BYTES, "file: file: more than 256 KiB"),
    (NODE.replace("  addresses", "\taddresses"), "file: line 5: a tab in the indentation"),
    (NODE.replace('fd00:244:0:1::/64"]', 'fd00:244:0:1::/64"'), "file: line 7: not YAML"),
    (ENDPOINT.replace("02:03}", "02:03"), "file: ends in the middle"),
    (NODE.replace("{name: n1}", "&a {name: n1}"), "file: line 3: anchors and aliases"),
    # The envelope.
    ("[]\n", "document 1: document: must be a mapping"),
    ("---\n", "document 1: document: is empty"),
    ("kind: Node\n", "document 1: apiVersion: is missing; this version reads pellicle.dev/v1"),
    (NODE.replace("/v1", "/v2"), 'node n1: apiVersion: is "pellicle.dev/v2"; this version reads'),
    (NODE.replace("kind: Node", "x: y"), "document n1: kind: is missing; known are Node"),
    (NODE.replace("Node", "Nodes"), 'nodes n1: kind: "Nodes" is not known: did you mean Node?'),
    (NODE.replace("Node", "Pod"), 'pod n1: kind: "Pod" is not known: '),
    (
        NODE.replace("metadata: {name: n1}", "metadata:"),
        "document 1: metadata: must be a mapping, is empty",
    ),
    (NODE.replace("metadata: {name: n1}\n", ""), 'document 1: document: "metadata" is missing'),
    (NODE + "status: {}\n", 'node n1: document: unknown field "status": '),
    # Shapes.
    (
        NODE.replace("podCIDRs", "podCIDR"),
        'node n1: spec: unknown field "podCIDR": did you mean podCIDRs?',
    ),
    (NODE.replace("podCIDRs", "podcidrs"), "did you mean podCIDRs?"),
    (
        NODE.replace("epoch:", "epoche:"),
        'node n1: spec.offers[0]: unknown field "epoche": did you mean epoch?',
    ),
    (NODE.replace("addresses", "address"), 'unknown field "address": did you mean addresses?'),
    (NODE.replace("{name: n1}", "{name: n1, namespace: x}"), "metadata: unknown field"),
    (
        ENDPOINT.replace("podMAC", "podMac"),
        'spec.attachment: unknown field "podMac": did you mean podMAC?',
    ),
    (ENDPOINT.replace("  node: n1\n", ""), 'endpoint default/p1: spec: "node" is missing'),
    (
        ENDPOINT.replace('[10.244.1.2, "fd00:244:0:1::2"]', "10.244.1.2"),
        "spec.addresses: must be a list, is text",
    ),
    (ENDPOINT.replace("{app: web}", "{app: [web]}"), "spec.labels[...]: must be text, is a list"),
    (ENDPOINT.replace("15018657", "web"), "spec.identity: must be a whole number, is text"),
    (ENDPOINT.replace("15018657", ""), "spec.identity: must be a whole number, is empty"),
    (ENDPOINT.replace("15018657", "-1"), "spec.identity: expected `int` >= 0"),
    (ENDPOINT.replace("15018657", "9" * 30), "spec.identity: expected `int` <= 4294967295"),
    # Names.
    (
        NODE.replace("name: n1", "name: N1"),
        "is not a DNS-1123 name (a-z, 0-9, - and . inside, at most 253): use lower",
    ),
    (NODE.replace("name: n1", "name: ../etc"), 'metadata.name: "../etc" is not a DNS-1123 name'),
    (NODE.replace("name: n1", f"name: {'a' * 64}"), "is not a DNS-1123 name"),
    (
        ENDPOINT.replace("namespace: default", "namespace: a.b"),
        'metadata.namespace: "a.b" is not a DNS-1123 label',
    ),
    (ENDPOINT.replace("node: n1", "node: n_1"), "spec.node: "),
    # Addresses.
    (NODE.replace("192.0.2.1,", "192.0.2.1/24,"), 'spec.addresses[0]: "192.0.2.1/24" is a CIDR'),
    (
        NODE.replace("192.0.2.1,", "192.0.2.256,"),
        'spec.addresses[0]: "192.0.2.256" is not an IP address',
    ),
    (NODE.replace("192.0.2.1,", "192.0.2.01,"), "is not an IP address (no leading zeros)"),
    (NODE.replace("192.0.2.1,", "127.0.0.1,"), "127.0.0.1 is a loopback address"),
    (NODE.replace("192.0.2.1,", "0.0.0.0,"), "0.0.0.0 is the unspecified address"),
    (NODE.replace("192.0.2.1,", "224.0.0.1,"), "224.0.0.1 is a multicast address"),
    (NODE.replace("192.0.2.1,", "255.255.255.255,"), "is the broadcast address"),
    (NODE.replace("2001:db8::1", "fe80::1"), "spec.addresses[1]: fe80::1 is a link-local address"),
    (NODE.replace("2001:db8::1", "2001:db8::1%eth0"), "is bound to one device"),
    (NODE.replace("2001:db8::1", "::ffff:192.0.2.1"), "is an IPv4 address in IPv6 clothes"),
    (
        NODE.replace("2001:db8::1", "192.0.2.2"),
        "more than one IPv4 address (192.0.2.1, 192.0.2.2): keep one",
    ),
    (
        NODE.replace('[192.0.2.1, "2001:db8::1"]', "[]"),
        "spec.addresses: is empty: at least one address",
    ),
    (NODE.replace("192.0.2.1,", "10.244.1.1,"), "10.244.1.1 lies in this node's own pod CIDRs"),
    # CIDRs.
    (
        NODE.replace("10.244.1.0/24", "10.244.1.5/24"),
        "10.244.1.5/24 has host bits set: did you mean 10.244.1.0/24?",
    ),
    (
        NODE.replace("10.244.1.0/24", "10.244.1.0"),
        'spec.podCIDRs[0]: "10.244.1.0" is not a CIDR: write',
    ),
    (
        NODE.replace("10.244.1.0/24", "10.244.1.0/255.255.255.0"),
        "is not a CIDR: write address/prefix length",
    ),
    (NODE.replace("10.244.1.0/24", "10.244.1.0/33"), "is not a CIDR"),
    (NODE.replace("10.244.1.0/24", "0.0.0.0/0"), "0.0.0.0/0 is too wide: /8 at most"),
    (NODE.replace("10.244.1.0/24", "224.0.0.0/8"), "begins with a multicast address"),
    (NODE.replace("fd00:244:0:1::/64", "10.244.0.0/16"), "10.244.1.0/24 and 10.244.0.0/16 overlap"),
    # Offers and ciphers.
    (NODE.replace("0d0e0f,", "0d0e,"), "spec.offers[0].bootNonce: is 15 bytes long instead of 16"),
    (
        NODE.replace("0d0e0f,", "0d0e0,"),
        "spec.offers[0].bootNonce: has 31 hex digits instead of 32",
    ),
    (NODE.replace("0d0e0f,", "0d0exx,"), "spec.offers[0].bootNonce: is not hexadecimal"),
    (NODE.replace("AwMD", "AwM"), "spec.offers[0].publicKey: is not base64"),
    (NODE.replace("AwMD", "", 1), "spec.offers[0].publicKey: is 29 bytes long instead of 32"),
    (NODE.replace("epoch: 3", "epoch: 0"), "spec.offers[0].epoch: epochs start at 1"),
    (NODE.replace("cHJvb2Y=", "A" * 40_000), "spec.offers[0].proof: is longer than"),
    (NODE + NODE.splitlines()[-1] + "\n", "spec.offers: epochs 3, 3 do not ascend"),
    (NODE + (NODE.splitlines()[-1] + "\n") * 2, "spec.offers: 3 offers; at most 2"),
    (
        NODE.replace("chacha20-poly1305", "chacha20"),
        '"chacha20" is not known: did you mean chacha20-poly1305?',
    ),
    (NODE.replace("[chacha20-poly1305]", "[]"), "spec.ciphers: is empty; leave it away"),
    (
        NODE.replace("[chacha20-poly1305]", "[aes-128-gcm, aes-128-gcm]"),
        "spec.ciphers: one is given twice",
    ),
    (NODE + "  longestPacket: 1279\n", "spec.longestPacket: expected `int` >= 1280"),
    (NODE + "  longestPacket: 65536\n", "spec.longestPacket: expected `int` <= 65535"),
    (NODE + "  longestPacket: any\n", "spec.longestPacket: must be a whole number, is text"),
    (NODE + "  longestPacket:\n", "spec.longestPacket: must be a whole number, is empty"),
    (NODE + "  longest: 2046\n", "did you mean longestPacket?"),
    # Identities and labels.
    (
        ENDPOINT.replace("15018657", "2"),
        'spec.identity: 2 is reserved and means "world": labels have 256 to',
    ),
    (ENDPOINT.replace("15018657", "16777216"), "spec.identity: 16777216 is reserved"),
    (
        ENDPOINT.replace("app: web", "io.pellicle/namespace: other"),
        "io.pellicle/namespace is set from the namespace",
    ),
    (ENDPOINT.replace("app: web", "app: w e b"), 'app: "w e b" is not a value'),
    (IDENTITY.replace("4711", "web"), 'metadata.name: "web" is not a number'),
    (IDENTITY.replace("4711", "04711"), 'metadata.name: "04711" is not a number'),
    (IDENTITY.replace("4711", "²"), "is not a number"),
    (IDENTITY.replace("4711", "7"), "metadata.name: 7 is reserved: labels have 256 to"),
    # The attachment.
    (
        ENDPOINT.replace("interface: eth0", "interface: sixteen-letters0"),
        "spec.attachment.interface: ",
    ),
    (ENDPOINT.replace("containerID: abc", "containerID: a/b"), "spec.attachment.containerID: "),
    (ENDPOINT.replace("12:34:56:01:02:03", "12:34:56:01:02"), "is not a MAC address"),
    # The policy.
    (POLICY.replace("own-keys", "ownkeys"), '"ownkeys" is not known: did you mean own-keys?'),
    (POLICY.replace("{cidrs", "{} #"), "spec.between[1]: selects nothing: give nodes"),
    (POLICY.replace("- {cidrs", "- {nodes: [n3]}\n    - {cidrs"), "3 selectors; at most 2"),
    (POLICY.replace("namespaces: [shop]", "namespaces: [Shop]"), "between[0].namespaces[0]: "),
    (POLICY.replace("namespaces: [shop]", "namespace: shop"), "did you mean namespaces?"),
    (POLICY.replace("app: web", "io.pellicle/namespace: a"), "namespace is given as namespaces"),
    (POLICY.replace("app: web", "app: w b"), 'app: "w b" is not a value'),
    (POLICY.replace("10.0.5.0/24", "10.0.5.1/24"), "cidrs[0]: 10.0.5.1/24 has host bits set"),
    (POLICY.replace("tcp/443", "443"), 'ports[0]: "443" is not of the form tcp/443'),
    (POLICY.replace("tcp/443", "icmp/8"), 'ports[0]: "icmp" has no ports: give tcp, udp, sctp'),
    (POLICY.replace("tcp/443", "tcp/9-8"), "ports are 1 to 65535, the lower one first"),
    (POLICY.replace("tcp/443", "tcp/1-1024"), "spec.ports: more than 1024 ports"),
    (POLICY.replace("  action: own-keys\n", ""), 'spec: "action" is missing'),
]


@pytest.mark.parametrize(("text", "words"), REJECTED, ids=range(len(REJECTED)))
def test_each_mistake_is_called_by_its_name(text: str | bytes, words: str) -> None:
    assert words in why(text)


def test_what_is_shown_of_a_value_is_short_and_printable() -> None:
    found = why(NODE.replace("name: n1", f'name: "\\e[31m{"x" * 5000}"'))
    assert found.isprintable()
    assert len(found) < 600

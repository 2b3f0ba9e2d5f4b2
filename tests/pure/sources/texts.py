# SPDX-License-Identifier: Apache-2.0
"""A good text of each kind of resource, and what is said of bad ones."""

from __future__ import annotations

from pellicle.sources.resources import (
    read,
)

OFFER = (
    "epoch: 3, bootNonce: 000102030405060708090a0b0c0d0e0f, "
    "publicKey: AwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwMDAwM=, proof: cHJvb2Y="
)
NODE = """\
apiVersion: pellicle.dev/v1
kind: Node
metadata: {name: n1}
spec:
  addresses: [192.0.2.1, "2001:db8::1"]
  podCIDRs: [10.244.1.0/24, "fd00:244:0:1::/64"]
  ciphers: [chacha20-poly1305]
  offers:
    - {OFFER}
""".replace("OFFER", OFFER)
ENDPOINT = """\
apiVersion: pellicle.dev/v1
kind: Endpoint
metadata: {namespace: default, name: p1}
spec:
  node: n1
  addresses: [10.244.1.2, "fd00:244:0:1::2"]
  identity: 15018657
  labels: {app: web}
  attachment: {containerID: abc, interface: eth0, hostDevice: pel01, podMAC: 12:34:56:01:02:03}
"""
IDENTITY = """\
apiVersion: pellicle.dev/v1
kind: Identity
metadata: {name: "4711"}
spec: {labels: {app: web, "io.pellicle/namespace": default}}
"""
POLICY = """\
apiVersion: pellicle.dev/v1
kind: EncryptionPolicy
metadata: {name: shop-to-bank}
spec:
  action: own-keys
  between:
    - {namespaces: [shop], labels: {app: web}}
    - {cidrs: [10.0.5.0/24, "fd00:5::/64"], nodes: [n2]}
  ports: [tcp/443, udp/8000-8010]
"""


def why(text: str | bytes) -> str:
    """The one reason for which `text` is rejected."""
    raw = text.encode() if isinstance(text, str) else text
    sheet = read("x.yaml", raw)
    assert sheet.documents == ()
    (row,) = sheet.rejected
    assert row.source == "x.yaml"
    return f"{row.name}: {row.why}"

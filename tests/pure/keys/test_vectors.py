# SPDX-License-Identifier: Apache-2.0
"""The vectors of docs/keys.md, computed from that page: nothing of the package is imported."""

from __future__ import annotations

import hashlib
import hmac
import json
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

PAGE = Path(__file__).parents[3] / "docs" / "keys.md"
VECTORS: dict[str, Any] = json.loads(PAGE.read_text().split("```json\n")[1].split("```")[0])
ALPHA, BETA = VECTORS["nodes"]
PAIRS: list[dict[str, Any]] = VECTORS["pairs"]
KEY_BYTES = {"chacha20-poly1305": 32, "aes-128-gcm": 16, "aes-256-gcm": 32}
SECRET = bytes.fromhex(VECTORS["secret"].split()[2])


def expand(prk: bytes, info: bytes, length: int) -> bytes:
    return HKDFExpand(SHA256(), length, info).derive(prk)


def labelled(label: str) -> bytes:
    return bytes([len(label)]) + label.encode()


def end(node: dict[str, Any]) -> bytes:
    name, address = node["name"].encode(), ip_address(node["address"])
    packed = IPv6Address(f"::ffff:{address}").packed if address.version == 4 else address.packed
    epoch = node["epoch"].to_bytes(4, "big")
    rest = bytes.fromhex(node["boot_nonce"]) + bytes.fromhex(node["public_key"])
    return len(name).to_bytes(2, "big") + name + packed + epoch + rest


def test_the_secret_gives_its_keys() -> None:
    prk = hmac.digest(b"pellicle psk 1", SECRET, "sha256")
    assert expand(prk, b"pellicle proof 1", 32).hex() == VECTORS["proof_key"]
    assert expand(prk, b"pellicle pair salt 1", 32).hex() == VECTORS["pair_salt"]
    assert expand(prk, b"pellicle fingerprint 1", 4).hex() == VECTORS["fingerprint"]


@pytest.mark.parametrize("node", VECTORS["nodes"], ids=lambda node: node["name"])
def test_offers_are_proven(node: dict[str, Any]) -> None:
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(node["private_key"]))
    assert private.public_key().public_bytes_raw().hex() == node["public_key"]
    name = node["name"].encode()
    message = labelled("pellicle offer 1") + len(name).to_bytes(2, "big") + name
    message += node["epoch"].to_bytes(4, "big") + bytes.fromhex(node["boot_nonce"])
    message += bytes.fromhex(node["public_key"])
    proof = hmac.digest(bytes.fromhex(VECTORS["proof_key"]), message, "sha256")
    assert proof.hex() == node["proof"]


@pytest.mark.parametrize(("own", "peer"), [(ALPHA, BETA), (BETA, ALPHA)], ids=["alpha", "beta"])
def test_both_nodes_extract_the_same(own: dict[str, Any], peer: dict[str, Any]) -> None:
    private = X25519PrivateKey.from_private_bytes(bytes.fromhex(own["private_key"]))
    public = X25519PublicKey.from_public_bytes(bytes.fromhex(peer["public_key"]))
    prk = hmac.digest(bytes.fromhex(VECTORS["pair_salt"]), private.exchange(public), "sha256")
    assert prk.hex() == VECTORS["prk"]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair["cipher"])
def test_each_pair_has_a_name(pair: dict[str, Any]) -> None:
    info = labelled("pellicle pair 1") + labelled(pair["cipher"]) + end(ALPHA) + end(BETA)
    assert hashlib.sha256(info).digest()[:8].hex() == pair["pair"]


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: pair["cipher"])
@pytest.mark.parametrize(
    ("direction", "sender", "receiver"),
    [("alpha_to_beta", ALPHA, BETA), ("beta_to_alpha", BETA, ALPHA)],
)
def test_every_sa_has_its_keys(
    pair: dict[str, Any], direction: str, sender: dict[str, Any], receiver: dict[str, Any]
) -> None:
    prk, length = bytes.fromhex(VECTORS["prk"]), KEY_BYTES[pair["cipher"]]
    bound = labelled(pair["cipher"]) + end(sender) + end(receiver)
    raw = int.from_bytes(expand(prk, labelled("pellicle spi 1") + bound, 4), "big")
    first = raw & ~3 if raw & ~3 >= 256 else (raw & ~3) + 256
    assert len(pair[direction]) == 4
    for number, sa in enumerate(pair[direction]):
        okm = expand(prk, labelled("pellicle esp 1") + bound + bytes([number]), length + 4)
        assert (sa["number"], sa["spi"]) == (number, f"{first + number:08x}")
        assert (sa["key"], sa["salt"]) == (okm[:length].hex(), okm[length:].hex())


def test_no_two_sas_share_anything() -> None:
    sas = [sa for pair in PAIRS for sa in (*pair["alpha_to_beta"], *pair["beta_to_alpha"])]
    assert len(sas) == 3 * 8
    for field in ("spi", "key", "salt"):
        assert len({sa[field] for sa in sas}) == len(sas)
    assert len({pair["pair"] for pair in PAIRS}) == len(PAIRS) == len(KEY_BYTES)

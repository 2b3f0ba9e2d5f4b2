# SPDX-License-Identifier: Apache-2.0
"""Labels → identity: what the whole cluster calls a set of labels, in 24 bits.

The number is not counted out by anyone: it is a hash of the labels' canonical form, and
the first to need it records it. When the number already belongs to other labels, the
next candidate is tried; as all nodes walk the same chain and a record can be made only
once, all come to the same number without talking to each other.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from hashlib import sha256
from types import MappingProxyType

from pellicle.facts import (
    FIRST_CLAIMED_IDENTITY,
    IDENTITY_HOST,
    IDENTITY_REMOTE_NODE,
    IDENTITY_WORLD,
    IdentityNumber,
)

NAMESPACE_LABEL = "io.pellicle/namespace"
LAST_CLAIMED_IDENTITY = (1 << 24) - 1
"""An identity must fit into the 24 bits that a tunnel header (VNI) has for it."""
MAX_CANDIDATES = 64
MAX_LABELS = 256
RESERVED: Mapping[IdentityNumber, str] = MappingProxyType(
    {
        IdentityNumber(0): "any",
        IDENTITY_HOST: "host",
        IDENTITY_WORLD: "world",
        IDENTITY_REMOTE_NODE: "remote-node",
    }
)

# The syntax of Kubernetes labels: an optional DNS prefix, then up to 63 characters.
_WORD = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
_PREFIX = re.compile(r"[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")
_MAX_PREFIX = 253


class LabelError(ValueError):
    """Labels that cannot name an identity."""


def is_claimable(number: int) -> bool:
    """Whether `number` may stand for labels; the ones below are reserved."""
    return FIRST_CLAIMED_IDENTITY <= number <= LAST_CLAIMED_IDENTITY


def checked(labels: Mapping[str, str]) -> Mapping[str, str]:
    """`labels` in canonical order; `LabelError` when one of them is not a label."""
    if len(labels) > MAX_LABELS:
        raise LabelError(f"{len(labels)} labels are more than {MAX_LABELS}")
    for key, value in labels.items():
        prefix, slash, word = key.rpartition("/")
        if slash and not (len(prefix) <= _MAX_PREFIX and _PREFIX.fullmatch(prefix)):
            raise LabelError(f'"{key}": what precedes the / must be a DNS name in lower case')
        if not _WORD.fullmatch(word):
            raise LabelError(f'"{key}" is not a label: letters, digits and -_. inside, at most 63')
        if value and not _WORD.fullmatch(value):
            raise LabelError(
                f'{key}: "{value}" is not a value: letters, digits and -_. inside, at most 63'
            )
    return MappingProxyType(dict(sorted(labels.items())))


def canonical(namespace: str, labels: Mapping[str, str]) -> Mapping[str, str]:
    """The labels that an endpoint of `namespace` with `labels` is known by."""
    if labels.get(NAMESPACE_LABEL, namespace) != namespace:
        raise LabelError(f"{NAMESPACE_LABEL} is set from the namespace: leave it away")
    return checked({**labels, NAMESPACE_LABEL: namespace})


def candidates(labels: Mapping[str, str]) -> Iterator[IdentityNumber]:
    """The numbers that canonical `labels` may have, in the order in which to try them."""
    material = _encoded(labels)
    size = LAST_CLAIMED_IDENTITY - FIRST_CLAIMED_IDENTITY + 1
    for attempt in range(MAX_CANDIDATES):
        digest = sha256(b"pellicle identity %d " % attempt + material).digest()
        yield IdentityNumber(FIRST_CLAIMED_IDENTITY + int.from_bytes(digest[:8], "big") % size)


def _encoded(labels: Mapping[str, str]) -> bytes:
    """Lengths before texts, so that no two sets of labels are written alike."""
    texts = [text.encode() for pair in sorted(labels.items()) for text in pair]
    return b"".join(len(text).to_bytes(4, "big") + text for text in texts)

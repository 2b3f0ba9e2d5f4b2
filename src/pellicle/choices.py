# SPDX-License-Identifier: Apache-2.0
"""What a setting lets people choose among: the words as they are written."""

from __future__ import annotations

from enum import StrEnum

from pellicle.facts import Cipher, Engine


class EngineChoice(StrEnum):
    """What shall encrypt."""

    AUTO = "auto"
    BPF = Engine.BPF.value
    XFRM = Engine.XFRM.value


class CipherChoice(StrEnum):
    """What it shall encrypt with."""

    AUTO = "auto"
    CHACHA20_POLY1305 = Cipher.CHACHA20_POLY1305.value
    AES_128_GCM = Cipher.AES_128_GCM.value
    AES_256_GCM = Cipher.AES_256_GCM.value


class Routing(StrEnum):
    """How pods' packets go from node to node."""

    DIRECT = "direct"
    OVERLAY = "overlay"


class IpsecOffload(StrEnum):
    """Whether a network card may do the kernel's IPsec."""

    AUTO = "auto"
    OFF = "off"


class KeyMode(StrEnum):
    """What proves that a node's offers of keys are its own."""

    AUTO = "auto"
    CLUSTER = "cluster"
    PSK = "psk"
    SPIFFE = "spiffe"


class KeyDerivation(StrEnum):
    """How the keys of SAs come from what is shared."""

    PAIRWISE = "pairwise"
    NONE = "none"


class AuditMode(StrEnum):
    """What becomes of cleartext that should not be."""

    ENFORCE = "enforce"
    MONITOR = "monitor"


class Attach(StrEnum):
    """How programs are hung on devices."""

    AUTO = "auto"
    TCX = "tcx"
    CLSACT = "clsact"


class OuterFamily(StrEnum):
    """The IP version between nodes."""

    AUTO = "auto"
    IPV4 = "4"
    IPV6 = "6"


class LogLevel(StrEnum):
    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    TEXT = "text"
    JSON = "json"

# SPDX-License-Identifier: Apache-2.0
"""Which engine encrypts, from what was asked for and what the kernel could do."""

from __future__ import annotations

import errno
from dataclasses import dataclass

import pytest

from pellicle.choices import CipherChoice, EngineChoice
from pellicle.encryption.engine import ALGORITHMS, Abilities, Choice, choose
from pellicle.facts import Cipher, Engine
from pellicle.kernel import Unsupported

NO_AEAD = OSError(errno.ENOSYS, "Requested AEAD algorithm not found")
NO_KIND = OSError(errno.EOPNOTSUPP, "Unknown device type")
CHACHA, AES = Cipher.CHACHA20_POLY1305, Cipher.AES_256_GCM
ALL = tuple(ALGORITHMS)

WHOLE = Abilities(None, dict.fromkeys(ALGORITHMS))
WITHOUT_ESP = Abilities(None, dict.fromkeys(ALGORITHMS, NO_AEAD))
WITHOUT_DEVICE = Abilities(NO_KIND, dict.fromkeys(ALGORITHMS))
WITHOUT_CHACHA = Abilities(None, {**dict.fromkeys(ALGORITHMS), CHACHA: NO_AEAD})


@dataclass(frozen=True)
class Case:
    says: str
    engine: EngineChoice
    cipher: CipherChoice
    able: Abilities
    choice: Choice | str
    """Or a part of what it is refused with."""


AUTO, BPF, XFRM = EngineChoice
ANY = CipherChoice.AUTO
CASES = (
    Case("all there", AUTO, ANY, WHOLE, Choice(Engine.XFRM, "the kernel has ESP", ALL)),
    Case("bpf all the same", BPF, ANY, WHOLE, Choice(Engine.BPF, "asked for", (CHACHA,))),
    Case("xfrm", XFRM, ANY, WHOLE, Choice(Engine.XFRM, "asked for", ALL)),
    Case(
        "no ESP", AUTO, ANY, WITHOUT_ESP,
        Choice(Engine.BPF, f"no ESP state can be made: {NO_AEAD.strerror}", (CHACHA,)),
    ),
    Case(
        "no device", AUTO, ANY, WITHOUT_DEVICE,
        Choice(Engine.BPF, f"no xfrm interface can be made: {NO_KIND.strerror}", (CHACHA,)),
    ),
    Case("xfrm without ESP", XFRM, ANY, WITHOUT_ESP, str(NO_AEAD.strerror)),
    Case("xfrm without its device", XFRM, ANY, WITHOUT_DEVICE, "xfrm interface"),
    Case(
        "what the kernel lacks is left out", AUTO, ANY, WITHOUT_CHACHA,
        Choice(Engine.XFRM, "the kernel has ESP", (AES, Cipher.AES_128_GCM)),
    ),
    Case(
        "one cipher", AUTO, CipherChoice.AES_128_GCM, WHOLE,
        Choice(Engine.XFRM, "the kernel has ESP", (Cipher.AES_128_GCM,)),
    ),
    Case(
        "a cipher that only bpf has here", AUTO, CipherChoice.CHACHA20_POLY1305, WITHOUT_CHACHA,
        Choice(Engine.BPF, f"the kernel has no {CHACHA}: {NO_AEAD.strerror}", (CHACHA,)),
    ),
    Case("a cipher that nothing has", AUTO, CipherChoice.AES_256_GCM, WITHOUT_ESP, "aes-256-gcm"),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.says)
def test_choice(case: Case) -> None:
    if isinstance(case.choice, Choice):
        assert choose(case.engine, case.cipher, case.able) == case.choice
        return
    with pytest.raises(Unsupported, match="CONFIG_") as refused:
        choose(case.engine, case.cipher, case.able)
    assert case.choice in str(refused.value)

# SPDX-License-Identifier: Apache-2.0
"""Which engine encrypts on this node, and with which ciphers: tried out, not guessed.

    what is configured  +  what the kernel did when it was asked  ──▶  Choice

`look` really makes ESP states and a device and takes them away again; `choose` is pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from pellicle.choices import CipherChoice, EngineChoice
from pellicle.config import Config
from pellicle.facts import Cipher, Engine
from pellicle.kernel import Unsupported
from pellicle.kernel.xfrm import probe_device, probe_esp

ALGORITHMS: Mapping[Cipher, tuple[str, int]] = MappingProxyType(
    {
        Cipher.AES_256_GCM: ("rfc4106(gcm(aes))", 288),
        Cipher.AES_128_GCM: ("rfc4106(gcm(aes))", 160),
        Cipher.CHACHA20_POLY1305: ("rfc7539esp(chacha20,poly1305)", 288),
    }
)
"""What the kernel calls a cipher, and the bits of key and salt together (net/xfrm/xfrm_algo.c)."""
BPF_CIPHERS = (Cipher.CHACHA20_POLY1305,)
NEEDS_ESP = "a kernel with CONFIG_INET_ESP, CONFIG_INET6_ESP and the cipher's module"
NEEDS_DEVICE = "a kernel with CONFIG_XFRM_INTERFACE"


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the kernel's IPsec did when it was tried; None: it worked."""

    device: OSError | None
    ciphers: Mapping[Cipher, OSError | None]

    @property
    def usable(self) -> tuple[Cipher, ...]:
        """Ciphers that a state could be made with, best first; none without the device."""
        if self.device is not None:
            return ()
        return tuple(cipher for cipher in ALGORITHMS if self.ciphers.get(cipher) is None)

    @property
    def why_not(self) -> str:
        """Why the kernel's IPsec cannot be used, in the kernel's words."""
        errors = [error for error in self.ciphers.values() if error is not None]
        if len(errors) == len(self.ciphers) and errors:
            return f"no ESP state can be made: {errors[0].strerror}"
        return f"no xfrm interface can be made: {self.device.strerror}" if self.device else ""


@dataclass(frozen=True, slots=True)
class Choice:
    """What encrypts here."""

    engine: Engine
    why: str
    ciphers: tuple[Cipher, ...]
    """Best first."""


def look() -> Abilities:
    """Try each cipher in both families, and the device; leaves nothing."""
    tried = {
        cipher: probe_esp(*algorithm, 4) or probe_esp(*algorithm, 6)
        for cipher, algorithm in ALGORITHMS.items()
    }
    return Abilities(probe_device(), MappingProxyType(tried))


def choose_for(config: Config) -> Choice:
    """What encrypts under this configuration; nothing is tried out for what is not asked for."""
    if not config.enable_encrypt_l3:
        return Choice(Engine.BPF, "encryption is off", BPF_CIPHERS)
    if config.engine is EngineChoice.BPF:
        return Choice(Engine.BPF, "asked for", BPF_CIPHERS)
    # Keys that are not derived are for AES-GCM.
    engine = EngineChoice.XFRM if config.are_keys_manual else config.engine
    return choose(engine, config.cipher, look())


def choose(engine: EngineChoice, cipher: CipherChoice, able: Abilities) -> Choice:
    """The engine; `Unsupported` when what was asked for cannot be had here."""
    wanted = tuple(ALGORITHMS) if cipher is CipherChoice.AUTO else (Cipher(cipher.value),)
    usable = tuple(each for each in able.usable if each in wanted)
    if engine is not EngineChoice.BPF and usable:
        why = "asked for" if engine is EngineChoice.XFRM else "the kernel has ESP"
        return Choice(Engine.XFRM, why, usable)
    if engine is EngineChoice.XFRM:
        raise Unsupported(f"the xfrm engine ({_lack(able, wanted)})", NEEDS_ESP)
    if not set(wanted) & set(BPF_CIPHERS):
        raise Unsupported(f"{wanted[0]} ({_lack(able, wanted)})", NEEDS_ESP)
    why = "asked for" if engine is EngineChoice.BPF else _lack(able, wanted)
    return Choice(Engine.BPF, why, BPF_CIPHERS)


def _lack(able: Abilities, wanted: tuple[Cipher, ...]) -> str:
    """Why none of the wanted ciphers can be had from the kernel."""
    if able.why_not:
        return able.why_not
    error = able.ciphers.get(wanted[0])
    return f"the kernel has no {wanted[0]}: {error.strerror if error else 'not tried'}"

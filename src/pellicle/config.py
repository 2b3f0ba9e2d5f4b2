# SPDX-License-Identifier: Apache-2.0
"""Flags > environment > file > defaults → one frozen `Config`, or everything that is wrong with it.

Pure: the environment, the text of the file and the hostname are passed in. Each value
remembers where it came from; each complaint names the setting, its origin and the way
out, and all of them are made at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, Final

from pellicle.choices import (
    Attach,
    AuditMode,
    CipherChoice,
    EngineChoice,
    IpsecOffload,
    KeyDerivation,
    KeyMode,
    LogFormat,
    LogLevel,
    OuterFamily,
    Routing,
)
from pellicle.exemptions import Exemption
from pellicle.facts import Address, Network, NodeName, Overlay
from pellicle.settings import ENVIRONMENT_PREFIX, SETTINGS, Setting
from pellicle.values import Listener, did_you_mean, printable, shown
from pellicle.wire.yaml import Tree, YamlError, documents

__all__ = [
    "SETTINGS",
    "Attach",
    "AuditMode",
    "CipherChoice",
    "Config",
    "ConfigError",
    "ConfigFile",
    "EngineChoice",
    "Explained",
    "IpsecOffload",
    "KeyDerivation",
    "KeyMode",
    "LogFormat",
    "LogLevel",
    "OuterFamily",
    "Routing",
    "Setting",
    "load",
]

_BY_NAME: Final[Mapping[str, Setting]] = MappingProxyType({s.name: s for s in SETTINGS})
_DEFAULT: Final = "default"
MAX_SHOWN: Final = 400
_TYPO: Final = 0.85
"""How near a variable must come to ours to be a misspelling and not someone else's."""


class ConfigError(ValueError):
    """The configuration cannot be used; one line in `problems` for each thing to mend."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(printable(problem, MAX_SHOWN) for problem in problems)
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """The file that was named, and its text."""

    path: str
    text: str


@dataclass(frozen=True, slots=True)
class Explained:
    """One setting, for people."""

    name: str
    value: str
    origin: str


@dataclass(frozen=True, slots=True)
class Config:
    """All that the agent was told. Fields are described in `SETTINGS`."""

    node_name: NodeName
    directory: Path
    enable_encrypt_l3: bool
    encrypt_nodes: bool
    exempt: tuple[Exemption, ...]
    routing: Routing
    overlay: Overlay
    audit: AuditMode
    engine: EngineChoice
    cipher: CipherChoice
    ipsec_offload: IpsecOffload
    uplink: str | None
    addresses: tuple[Address, ...]
    pod_cidrs: tuple[Network, ...]
    cluster_cidrs: tuple[Network, ...]
    node_cidrs: tuple[Network, ...]
    node_cidrs_except: tuple[Network, ...]
    key_mode: KeyMode
    psk_file: Path | None
    ipsec_key_derivation: KeyDerivation
    encrypt_subnets: tuple[Network, ...]
    spiffe_socket: Path
    spiffe_id: tuple[str, ...]
    run_dir: Path
    state_dir: Path
    metrics_address: Listener | None
    bpffs: Path
    route_table: int
    drain_seconds: float
    key_lifetime: float
    sa_packet_limit: int
    flow_interval: float
    refresh_seconds: float
    log_level: LogLevel
    log_format: LogFormat
    attach: Attach
    outer_family: OuterFamily
    origins: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}), compare=False, repr=False
    )

    @property
    def trust(self) -> KeyMode:
        """The mode of the keys, no longer auto."""
        if self.key_mode is not KeyMode.AUTO:
            return self.key_mode
        return KeyMode.CLUSTER if self.psk_file is None else KeyMode.PSK

    @property
    def tunnel(self) -> Overlay | None:
        """In which pods' packets travel; None: they are routed directly."""
        return self.overlay if self.routing is Routing.OVERLAY else None

    @property
    def are_keys_manual(self) -> bool:
        """They are used as they are in the file."""
        return self.ipsec_key_derivation is KeyDerivation.NONE

    def explain(self) -> tuple[Explained, ...]:
        """Each setting, its value, and where it came from."""
        return tuple(
            Explained(s.name, _words(getattr(self, s.name), s), self.origins.get(s.name, _DEFAULT))
            for s in SETTINGS
        )


def load(
    flags: Mapping[str, Any],
    environment: Mapping[str, str],
    file: ConfigFile | None,
    hostname: str,
) -> Config:
    """The configuration, or a `ConfigError`.

    `flags` by the settings' names: texts, numbers, booleans, or sequences of texts for lists;
    None is as good as absent.
    """
    problems: list[str] = []
    given = {"node_name": _Given([hostname.lower()], "hostname")}
    given |= {
        s.name: _Given(_split(s.default) if s.is_list else [s.default], _DEFAULT)
        for s in SETTINGS
        if s.default is not None
    }
    for layer in (_from_file(file, problems), _from_environment(environment, problems)):
        given |= layer
    given |= _from_flags(flags)
    values = {}
    for setting in SETTINGS:
        try:
            values[setting.name] = _value(setting, given.get(setting.name))
        except ValueError as error:
            problems.append(_complaint(setting.name, given[setting.name].origin, error))
    origins = MappingProxyType({name: found.origin for name, found in given.items()})
    if not problems:
        config = Config(**values, origins=origins)
        problems += _contradictions(config)
        if not problems:
            return config
    raise ConfigError(problems)


@dataclass(frozen=True, slots=True)
class _Given:
    texts: Sequence[str]
    origin: str


def _value(setting: Setting, given: _Given | None) -> Any:
    if given is None:
        return () if setting.is_list else None
    value = setting.read(setting.name, given.texts)
    return Path(value) if isinstance(value, PurePath) else value


def _complaint(name: str, origin: str, error: ValueError) -> str:
    return f"{name} (from {origin}): {str(error).removeprefix(f'{name}: ')}"


def _from_flags(flags: Mapping[str, Any]) -> Iterator[tuple[str, _Given]]:
    for name, said in flags.items():
        setting = _BY_NAME[name]
        if said is None or (setting.is_list and not said):
            continue
        if isinstance(said, (list, tuple)):
            texts = [part for item in said for part in _split(str(item))]
        elif isinstance(said, bool):
            texts = ["true" if said else "false"]
        else:
            texts = _split(str(said)) if setting.is_list else [str(said)]
        yield name, _Given(texts, setting.flag)


def _from_environment(
    environment: Mapping[str, str], problems: list[str]
) -> Iterator[tuple[str, _Given]]:
    known = {setting.variable: setting for setting in SETTINGS}
    for variable, text in environment.items():
        if variable in known and text:
            setting = known[variable]
            yield setting.name, _Given(_split(text) if setting.is_list else [text], variable)
        elif variable not in known and variable.startswith(ENVIRONMENT_PREFIX):
            # Kubernetes puts PELLICLE_PORT and the like there for a service of that name.
            near = get_close_matches(variable, known, n=1, cutoff=_TYPO)
            problems += [f"{variable} (from the environment): did you mean {n}?" for n in near]


def _from_file(file: ConfigFile | None, problems: list[str]) -> Iterator[tuple[str, _Given]]:
    if file is None:
        return
    try:
        trees = list(documents(file.text))
    except YamlError as error:
        problems.append(f"{file.path}: {error}")
        return
    if not trees or trees == [""]:
        return
    if len(trees) > 1 or not isinstance(trees[0], dict):
        problems.append(f"{file.path}: must be one mapping of settings, for example: uplink: eth0")
        return
    seen: set[str] = set()
    for key, tree in trees[0].items():
        name = key.replace("-", "_")
        if name in seen:
            problems.append(f"{file.path}: {name} is given twice, with - and with _")
        seen.add(name)
        if name not in _BY_NAME:
            problems.append(
                f"{file.path}: unknown setting {shown(key)}: {did_you_mean(name, _BY_NAME)}"
            )
            continue
        texts = _texts(tree, _BY_NAME[name])
        if texts is None:
            wanted = "a list of texts" if _BY_NAME[name].is_list else "a single value"
            problems.append(f"{name} (from {file.path}): must be {wanted}")
        elif texts:
            yield name, _Given(texts, file.path)


def _texts(tree: Tree, setting: Setting) -> Sequence[str] | None:
    """What the file says, empty for nothing; None when it has the wrong shape."""
    if isinstance(tree, str):
        if tree in {"", "~", "null"}:
            return ()
        return _split(tree) if setting.is_list else (tree,)
    if not setting.is_list or not isinstance(tree, list):
        return None
    texts = [item for item in tree if isinstance(item, str)]
    return _split(",".join(texts)) if len(texts) == len(tree) else None


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _contradictions(config: Config) -> Iterator[str]:
    """What is right by itself and wrong together."""

    def about(name: str, why: str) -> str:
        return f"{name} (from {config.origins.get(name, _DEFAULT)}): {why}"

    if (config.psk_file is None) == (config.trust is KeyMode.PSK):
        is_wanted = config.trust is KeyMode.PSK
        needs = "not set, but" if is_wanted else "set, but no secret is used:"
        fix = "name the file with the shared secret, or leave key_mode away"
        yield about("psk_file", f"{needs} key_mode is {config.trust}: {fix}")
    if config.enable_encrypt_l3 and not config.cluster_cidrs:
        why = "without them an unknown pod would be taken for the outside world"
        yield about("cluster_cidrs", f"not set, but enable_encrypt_l3 is: {why}")
    yield from _of_ciphers(config, about)
    yield from _of_networks(config, about)
    family = str(config.outer_family)
    families = {str(address.version) for address in config.addresses}
    if families and family not in {OuterFamily.AUTO, *families}:
        yield about("outer_family", f"IPv{family}, but addresses has no IPv{family} address")


def _of_networks(config: Config, about: Callable[[str, str], str]) -> Iterator[str]:
    for name, wholes in (("pod_cidrs", "cluster_cidrs"), ("node_cidrs_except", "node_cidrs")):
        for cidr in getattr(config, name):
            if not any(_is_inside(cidr, whole) for whole in getattr(config, wholes)):
                inside = ", ".join(map(str, getattr(config, wholes))) or "not set"
                yield about(name, f"{cidr} does not lie inside {wholes} ({inside})")
    for cidr in config.node_cidrs:
        if cidr in config.cluster_cidrs:
            yield about("node_cidrs", f"{cidr} is also in cluster_cidrs: nodes or pods, not both")
    for address in config.addresses:
        if any(address in cidr for cidr in config.pod_cidrs):
            yield about("addresses", f"{address} lies in pod_cidrs, where only pods can be")


def _of_ciphers(config: Config, about: Callable[[str, str], str]) -> Iterator[str]:
    bpf_ciphers = {CipherChoice.AUTO, CipherChoice.CHACHA20_POLY1305}
    if config.engine == EngineChoice.BPF and config.cipher not in bpf_ciphers:
        origin = config.origins.get("engine", _DEFAULT)
        why = f"the engine bpf (from {origin}) has only {CipherChoice.CHACHA20_POLY1305}"
        fix = f"leave cipher away, or let engine be {EngineChoice.XFRM} or {EngineChoice.AUTO}"
        yield about("cipher", f"{config.cipher}, but {why}: {fix}")
    if config.are_keys_manual:
        yield from _of_manual_keys(config, about)
    elif config.encrypt_subnets:
        why = "each peer has keys of its own, so that no two can share SAs"
        fix = "let ipsec_key_derivation be none (and read what that gives up), or leave it away"
        yield about("encrypt_subnets", f"set, but {why}: {fix}")


def _of_manual_keys(config: Config, about: Callable[[str, str], str]) -> Iterator[str]:
    name = "ipsec_key_derivation"
    if config.trust is not KeyMode.PSK:
        yield about(name, "none, but there is no psk_file with keys to use as they are")
    if config.engine is EngineChoice.BPF:
        yield about(name, "none, but the engine bpf has no AES: let engine be xfrm or auto")
    if config.cipher is not CipherChoice.AUTO:
        yield about("cipher", f"{config.cipher}, but the keys in the psk_file are used as they are")


def _is_inside(cidr: Network, whole: Network) -> bool:
    return cidr.version == whole.version and cidr.subnet_of(whole)  # type: ignore[arg-type]


def _words(value: Any, setting: Setting) -> str:
    if value is None or value == ():
        return f"({setting.unset})"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}s"
    return ", ".join(map(str, value)) if isinstance(value, tuple) else str(value)


assert {f.name for f in fields(Config)} == {"origins", *_BY_NAME}

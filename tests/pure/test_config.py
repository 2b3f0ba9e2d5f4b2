# SPDX-License-Identifier: Apache-2.0
"""Configuration: who wins, what is refused, and whether the words lead to the mistake."""

from __future__ import annotations

import json
from dataclasses import fields
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellicle.config import (
    SETTINGS,
    Attach,
    AuditMode,
    CipherChoice,
    Config,
    ConfigError,
    ConfigFile,
    EngineChoice,
    IpsecOffload,
    KeyDerivation,
    KeyMode,
    LogLevel,
    OuterFamily,
    Routing,
    load,
)
from pellicle.exemptions import DEFAULT_EXEMPTIONS, exemption
from pellicle.facts import Cipher, Engine, Overlay

GOOD = {
    "enable_encrypt_l3": True,
    "psk_file": "/etc/pellicle/psk",
    "cluster_cidrs": ["10.244.0.0/16", "fd00:244::/32"],
    "pod_cidrs": ["10.244.1.0/24", "fd00:244:1::/64"],
}


def loaded(
    flags: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
    text: str | None = None,
    hostname: str = "host1",
) -> Config:
    file = None if text is None else ConfigFile("/etc/pellicle.yaml", text)
    return load(flags or {}, environment or {}, file, hostname)


def problems(*given: Any, **named: Any) -> tuple[str, ...]:
    with pytest.raises(ConfigError) as caught:
        loaded(*given, **named)
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def test_without_a_word_the_defaults_hold() -> None:
    config = loaded()
    assert config == Config(
        node_name="host1",  # type: ignore[arg-type]
        directory=Path("/var/lib/pellicle/cluster"),
        enable_encrypt_l3=False,
        encrypt_nodes=True,
        exempt=tuple(exemption("exempt", text) for text in DEFAULT_EXEMPTIONS),
        routing=Routing.DIRECT,
        overlay=Overlay.VXLAN,
        audit=AuditMode.ENFORCE,
        engine=EngineChoice.AUTO,
        cipher=CipherChoice.AUTO,
        ipsec_offload=IpsecOffload.AUTO,
        uplink=None,
        addresses=(),
        pod_cidrs=(),
        cluster_cidrs=(),
        node_cidrs=(),
        node_cidrs_except=(),
        key_mode=KeyMode.AUTO,
        psk_file=None,
        ipsec_key_derivation=KeyDerivation.PAIRWISE,
        encrypt_subnets=(),
        spiffe_socket=Path("/run/spire/agent-sockets/spire-agent.sock"),
        spiffe_id=("spiffe://{trust_domain}/pellicle/node/{node}",),
        run_dir=Path("/run/pellicle"),
        state_dir=Path("/var/lib/pellicle/state"),
        metrics_address=None,
        bpffs=Path("/sys/fs/bpf/pellicle"),
        route_table=200,
        drain_seconds=10.0,
        key_lifetime=3600.0,
        sa_packet_limit=2**40,
        flow_interval=5.0,
        refresh_seconds=30.0,
        log_level=LogLevel.INFO,
        log_format="text",  # type: ignore[arg-type]
        attach=Attach.AUTO,
        outer_family=OuterFamily.AUTO,
    )


def test_flags_win_over_the_environment_over_the_file_over_the_default() -> None:
    text = "route_table: 201\ndrain-seconds: 1m\nlog_level: debug\n"
    config = loaded(
        {"route_table": 203, "uplink": None},
        {"PELLICLE_ROUTE_TABLE": "202", "PELLICLE_DRAIN_SECONDS": "2m", "PELLICLE_UPLINK": "eth1"},
        text,
    )
    assert (config.route_table, config.drain_seconds) == (203, 120.0)
    assert (config.log_level, config.uplink) == (LogLevel.DEBUG, "eth1")
    origins = {row.name: row.origin for row in config.explain()}
    assert origins["route_table"] == "--route-table"
    assert origins["drain_seconds"] == "PELLICLE_DRAIN_SECONDS"
    assert origins["log_level"] == "/etc/pellicle.yaml"
    assert origins["node_name"] == "hostname"
    assert origins["bpffs"] == "default"


def test_every_setting_is_explained() -> None:
    rows = {row.name: row.value for row in loaded(GOOD).explain()}
    assert list(rows) == [f.name for f in fields(Config) if f.name != "origins"]
    assert rows["uplink"] == "(the device of the default route)"
    assert rows["pod_cidrs"] == "10.244.1.0/24, fd00:244:1::/64"
    assert rows["enable_encrypt_l3"] == "true"
    assert rows["flow_interval"] == "5s"


def test_explained_values_can_be_given_again() -> None:
    config = loaded({**GOOD, "addresses": "192.0.2.1,2001:db8::1", "uplink": "eth0"})
    said = {row.name: row.value for row in config.explain() if not row.value.startswith("(")}
    assert loaded({}, {}, json.dumps(said)) == config
    assert loaded({}, {f"PELLICLE_{name.upper()}": value for name, value in said.items()}) == config
    assert loaded(said) == config


@pytest.mark.parametrize(
    "said",
    [
        ["10.244.1.0/24", "fd00:244:1::/64"],
        ("10.244.1.0/24,fd00:244:1::/64",),
        "10.244.1.0/24, fd00:244:1::/64",
    ],
)
def test_lists_can_be_repeated_or_joined_by_commas(said: Any) -> None:
    wanted = (ip_network("10.244.1.0/24"), ip_network("fd00:244:1::/64"))
    assert loaded({**GOOD, "pod_cidrs": said}).pod_cidrs == wanted
    base = {name: value for name, value in GOOD.items() if name != "pod_cidrs"}
    text = said if isinstance(said, str) else list(said)
    assert loaded(base, {}, json.dumps({"pod-cidrs": text})).pod_cidrs == wanted


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "uplink:\n", "uplink: null\n", "{}"])
def test_nothing_in_the_file_is_nothing(text: str) -> None:
    assert loaded(text=text) == loaded()


def test_the_hostname_is_a_name_for_the_node() -> None:
    assert loaded(hostname="Node-7.Example.COM").node_name == "node-7.example.com"
    (found,) = problems(hostname="node_7")
    assert found.startswith('node_name (from hostname): "node_7" is not a DNS-1123 name')
    assert loaded({"node_name": "n7"}, hostname="node_7").node_name == "n7"


@pytest.mark.parametrize("text", ["true", "yes", "ON", "1"])
def test_switches_understand_people(text: str) -> None:
    base = {name: value for name, value in GOOD.items() if name != "enable_encrypt_l3"}
    assert loaded(base, {"PELLICLE_ENABLE_ENCRYPT_L3": text}).enable_encrypt_l3
    assert loaded(base, {}, f"enable_encrypt_l3: {text}\n").enable_encrypt_l3


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("5", 5), ("5s", 5), ("500ms", 0.5), ("2m", 120), ("1h", 3600), ("0.25 s", 0.25)],
)
def test_times_have_units(text: str, seconds: float) -> None:
    assert loaded({"flow_interval": text}).flow_interval == seconds


BAD: list[tuple[dict[str, Any], str]] = [
    ({"node_name": "N1"}, 'node_name (from --node-name): "N1" is not a DNS-1123 name'),
    ({"directory": "cluster"}, 'directory (from --directory): "cluster" is not an absolute path'),
    ({"enable_encrypt_l3": "maybe"}, '"maybe" is neither true nor false'),
    ({"engine": "wg"}, 'engine (from --engine): "wg" is not known: give auto, bpf, xfrm'),
    ({"cipher": "aes"}, '"aes" is not known: give auto, chacha20-poly1305, aes-128-gcm, aes-256'),
    ({"ipsec_offload": "on"}, '"on" is not known: give auto, off'),
    ({"uplink": "e/0"}, '"e/0" is not the name of a device'),
    ({"uplink": "sixteen-letters-"}, "is not the name of a device"),
    ({"addresses": "192.0.2.1/24"}, '"192.0.2.1/24" is a CIDR'),
    ({"addresses": "192.0.2.1,192.0.2.2"}, "more than one IPv4 address"),
    ({**GOOD, "pod_cidrs": "10.244.1.1/24"}, "has host bits set: did you mean 10.244.1.0/24?"),
    ({**GOOD, "cluster_cidrs": "10.244.0.0"}, '"10.244.0.0" is not a CIDR'),
    ({"route_table": "main"}, '"main" is not a whole number'),
    ({"route_table": "254"}, 'route_table (from --route-table): 254 is the kernel\'s table "main"'),
    ({"route_table": "0"}, "0 is not between 1 and 4294967294"),
    ({"drain_seconds": "soon"}, '"soon" is not a time: write 500ms, 5s, 2m or 1h'),
    ({"drain_seconds": "-1"}, "is not a time"),
    ({"flow_interval": "1ms"}, "1ms is not between 0.1s and 3600s"),
    ({"sa_packet_limit": "0"}, "0 is not between 1 and"),
    ({"route_table": "252"}, '253 is the kernel\'s table "default"'),
    ({"exempt": "tcp/22"}, '"tcp/22" is not of the form name=protocol/port'),
    ({"audit": "watch"}, '"watch" is not known: give enforce, monitor'),
    ({"attach": "xdp"}, '"xdp" is not known: give auto, tcx, clsact'),
    ({"outer_family": "v4"}, '"v4" is not known: give auto, 4, 6'),
    # Together.
    ({**GOOD, "psk_file": None, "key_mode": "psk"}, "psk_file (from default): not set, but"),
    ({**GOOD, "key_mode": "cluster"}, "psk_file (from --psk-file): set, but no secret is used"),
    (
        {**GOOD, "psk_file": None, "ipsec_key_derivation": "none"},
        "ipsec_key_derivation (from --ipsec-key-derivation): none, but there is no psk_file",
    ),
    (
        {**GOOD, "engine": "bpf", "ipsec_key_derivation": "none"},
        "none, but the engine bpf has no AES: let engine be xfrm or auto",
    ),
    (
        {**GOOD, "encrypt_subnets": "10.0.0.0/8"},
        "no two can share SAs: let ipsec_key_derivation be none (and read what that gives up), or",
    ),
    ({**GOOD, "encrypt_subnets": "10.0.0.1/8"}, "10.0.0.1/8 has host bits set: did you mean"),
    (
        {**GOOD, "cipher": "aes-128-gcm", "ipsec_key_derivation": "none"},
        "cipher (from --cipher): aes-128-gcm, but the keys in the psk_file are used as they are",
    ),
    ({**GOOD, "key_mode": "spiffe"}, "psk_file (from --psk-file): set, but no secret is used"),
    ({"spiffe_id": "spiffe://example.org/pellicle"}, "has no {node}: every node could speak"),
    ({"spiffe_id": "spiffe://{node}/n"}, "{node} must stand in the path"),
    ({"spiffe_id": "spiffe://example.org/{node}/{pod}"}, "only {trust_domain} and {node} are"),
    ({"spiffe_id": "https://example.org/{node}"}, "is not a SPIFFE ID"),
    ({"spiffe_id": "spiffe://Example.org/{node}"}, "is not a SPIFFE ID"),
    ({"spiffe_id": "spiffe://example.org/{node}/"}, "is not a SPIFFE ID"),
    ({"spiffe_socket": "spire.sock"}, '"spire.sock" is not an absolute path'),
    ({**GOOD, "key_mode": "spire"}, '"spire" is not known: give auto, cluster, psk'),
    ({**GOOD, "key_lifetime": "0.5s"}, "0.5s is not between 1s and"),
    ({**GOOD, "cluster_cidrs": (), "pod_cidrs": ()}, "cluster_cidrs (from default): not set, but"),
    ({**GOOD, "pod_cidrs": "10.9.0.0/24"}, "10.9.0.0/24 does not lie inside cluster_cidrs (10."),
    ({**GOOD, "pod_cidrs": "10.0.0.0/8"}, "10.0.0.0/8 does not lie inside cluster_cidrs"),
    ({"pod_cidrs": "10.9.0.0/24"}, "does not lie inside cluster_cidrs (not set)"),
    ({"node_cidrs": "192.0.2.0/24", "cluster_cidrs": "192.0.2.0/24"}, "is also in cluster_cidrs"),
    ({"node_cidrs_except": "192.0.2.1"}, "192.0.2.1/32 does not lie inside node_cidrs (not set)"),
    (
        {"node_cidrs": "192.0.2.0/24", "node_cidrs_except": "192.0.2.1,198.51.100.0/24"},
        "198.51.100.0/24 does not lie inside node_cidrs (192.0.2.0/24)",
    ),
    ({**GOOD, "addresses": "10.244.1.1"}, "10.244.1.1 lies in pod_cidrs"),
    (
        {"engine": "bpf", "cipher": "aes-128-gcm"},
        "cipher (from --cipher): aes-128-gcm, but the engine bpf (from --engine) has only chacha",
    ),
    ({"addresses": "192.0.2.1", "outer_family": "6"}, "IPv6, but addresses has no IPv6 address"),
]  # fmt: skip


@pytest.mark.parametrize(("flags", "words"), BAD, ids=range(len(BAD)))
def test_each_mistake_names_setting_origin_and_way_out(flags: dict[str, Any], words: str) -> None:
    (found,) = problems(flags)
    assert words in found


BAD_FILES = [
    ("pod_cidr: []\n", '/etc/pellicle.yaml: unknown setting "pod_cidr": did you mean pod_cidrs?'),
    ("quux: 1\n", 'unknown setting "quux": known are node_name, directory'),
    ("- a\n", "must be one mapping of settings, for example: uplink: eth0"),
    ("a: 1\n---\nb: 2\n", "must be one mapping of settings"),
    ("uplink: [eth0]\n", "uplink (from /etc/pellicle.yaml): must be a single value"),
    ("pod_cidrs: {a: b}\n", "pod_cidrs (from /etc/pellicle.yaml): must be a list of texts"),
    ("pod_cidrs: [[a]]\n", "must be a list of texts"),
    ("\tuplink: eth0\n", "/etc/pellicle.yaml: line 1: a tab in the indentation"),
    ("uplink: a\nuplink: b\n", '/etc/pellicle.yaml: line 2: "uplink" is given twice'),
    ("uplink: &a eth0\n", "anchors and aliases"),
    ("route_table: x\n", 'route_table (from /etc/pellicle.yaml): "x" is not a whole number'),
]


@pytest.mark.parametrize(("text", "words"), BAD_FILES, ids=range(len(BAD_FILES)))
def test_a_bad_file_is_named(text: str, words: str) -> None:
    (found,) = problems(text=text)
    assert words in found


def test_one_setting_written_in_two_ways_is_a_mistake() -> None:
    assert "given twice" in problems(text="pod-cidrs: []\npod_cidrs: []\n")[0]


def test_all_mistakes_are_told_at_once() -> None:
    found = problems({"uplink": "/"}, {"PELLICLE_ATTACH": "x"}, "route_table: y\nup: z\n")
    assert len(found) == 4


def test_a_misspelt_variable_is_not_encryption_silently_off() -> None:
    (found,) = problems({}, {"PELLICLE_ENABLE_ENCRYPT_L4": "true"})
    assert found.startswith("PELLICLE_ENABLE_ENCRYPT_L4 (from the environment)")
    assert found.endswith("did you mean PELLICLE_ENABLE_ENCRYPT_L3?")


def test_variables_of_a_kubernetes_service_are_not_ours() -> None:
    names = ["PORT", "PORT_9090_TCP", "PORT_9090_TCP_ADDR", "SERVICE_HOST", "SERVICE_PORT"]
    assert loaded({}, {f"PELLICLE_{name}": "tcp://10.0.0.1:9090" for name in names}) == loaded()


def test_complaints_cannot_steer_a_terminal() -> None:
    for found in problems({"uplink": "\x1b[31m"}, {}, '"\\e[2J": 1\n"a\\nb": 2\n'):
        assert found.isprintable()


def test_a_flag_that_is_no_setting_is_a_bug() -> None:
    with pytest.raises(KeyError):
        loaded({"uplnk": "eth0"})


@given(
    st.dictionaries(st.sampled_from([s.name for s in SETTINGS]), st.text(max_size=30)),
    st.text(max_size=60),
)
def test_whatever_is_given_it_is_a_config_or_an_error(flags: dict[str, Any], text: str) -> None:
    try:
        config = loaded(flags, {}, text)
    except ConfigError as error:
        config = None
        complaints = error.problems
    else:
        complaints = ()
    assert (config is None) == bool(complaints)
    assert all(complaint.isprintable() for complaint in complaints)


@given(st.sampled_from(SETTINGS))
def test_names_follow_from_the_setting(setting: Any) -> None:
    assert setting.flag == "--" + setting.name.replace("_", "-")
    assert setting.variable == "PELLICLE_" + setting.name.upper()
    assert setting.words.endswith(".")


@pytest.mark.parametrize("engine", EngineChoice)
@pytest.mark.parametrize("cipher", CipherChoice)
def test_every_cipher_has_an_engine(engine: EngineChoice, cipher: CipherChoice) -> None:
    said = {"engine": engine.value, "cipher": cipher.value}
    if engine == "bpf" and cipher.startswith("aes"):
        assert len(problems(said)) == 1
    else:
        config = loaded(said)
        assert (config.engine, config.cipher) == (engine, cipher)


def test_what_can_be_chosen_is_what_there_is() -> None:
    assert {*EngineChoice} - {"auto"} == {*Engine}
    assert {*CipherChoice} - {"auto"} == {*Cipher}


def test_addresses_are_addresses() -> None:
    config = loaded({"addresses": ["192.0.2.1", "2001:db8::1"]})
    assert config.addresses == (ip_address("192.0.2.1"), ip_address("2001:db8::1"))

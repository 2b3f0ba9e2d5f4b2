# SPDX-License-Identifier: Apache-2.0
"""What the agent makes of a CNI request, and the results that it answers with."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellicle.facts import Endpoint, EndpointName, IdentityNumber, NodeName
from pellicle.sources import cni_spec
from pellicle.sources.cni_spec import CniError, Code, Hop, Plug

CONFIG = {"cniVersion": "1.1.0", "name": "pellicle"}
ARGUMENTS: dict[str, Any] = {
    "command": "ADD",
    "container_id": "c0ffee",
    "ifname": "eth0",
    "netns": "/run/netns/a",
    "args": {"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "web-0"},
    "config": CONFIG,
}
NUMBER = IdentityNumber(300)
HOPS = (
    Hop(ip_address("10.244.1.2"), ip_address("10.244.1.1"), 1446),
    Hop(ip_address("fd00::2"), ip_address("fe80::1"), 1426),
)


def parse(**change: Any) -> cni_spec.Request:
    return cni_spec.parse({**ARGUMENTS, **change})


@dataclass(frozen=True)
class Bad:
    says: str
    change: dict[str, Any]
    code: Code
    words: str


BAD = (
    Bad("unknown command", {"command": "UPDATE"}, Code.UNDECODABLE, "not a CNI request"),
    Bad("no command", {"command": None}, Code.UNDECODABLE, "not a CNI request"),
    Bad("args of no kind", {"args": {"A": 1}}, Code.UNDECODABLE, "not a CNI request"),
    Bad("a path", {"container_id": "../../etc"}, Code.INVALID_ENVIRONMENT, "CNI_CONTAINERID"),
    Bad("a long one", {"container_id": "a" * 257}, Code.INVALID_ENVIRONMENT, "CNI_CONTAINERID"),
    Bad("no container", {"container_id": ""}, Code.INVALID_ENVIRONMENT, "CNI_CONTAINERID"),
    Bad("a slash", {"ifname": "a/b"}, Code.INVALID_ENVIRONMENT, "CNI_IFNAME"),
    Bad("two dots", {"ifname": ".."}, Code.INVALID_ENVIRONMENT, "CNI_IFNAME"),
    Bad("16 letters", {"ifname": "a" * 16}, Code.INVALID_ENVIRONMENT, "CNI_IFNAME"),
    Bad("no version", {"config": {}}, Code.INCOMPATIBLE_VERSION, "cniVersion ''"),
    Bad("2.0", {"config": {"cniVersion": "2.0"}}, Code.INCOMPATIBLE_VERSION, "cniVersion '2.0'"),
)


@pytest.mark.parametrize("case", BAD, ids=lambda case: case.says)
def test_a_request_that_could_do_harm_is_refused(case: Bad) -> None:
    with pytest.raises(CniError) as caught:
        parse(**case.change)
    assert (caught.value.code, case.words in caught.value.message) == (case.code, True)


@pytest.mark.parametrize(
    ("args", "name"),
    [
        ({"K8S_POD_NAMESPACE": "shop", "K8S_POD_NAME": "web-0"}, EndpointName("shop", "web-0")),
        ({"K8S_POD_NAME": "web.0"}, EndpointName("default", "web.0")),
        ({}, EndpointName("default", "c0ffee")),
        ({"K8S_POD_NAMESPACE": "", "K8S_POD_NAME": ""}, EndpointName("default", "c0ffee")),
    ],
)
def test_the_endpoint_is_named_after_the_pod_or_its_container(
    args: dict[str, str], name: EndpointName
) -> None:
    assert cni_spec.endpoint_name(parse(args=args)) == name


def test_a_container_whose_id_is_no_name_is_named_after_its_device() -> None:
    request = parse(args={}, container_id="Not_A-Name")
    assert cni_spec.endpoint_name(request).name == request.plug.host_device


@pytest.mark.parametrize(
    "args",
    [{"K8S_POD_NAME": "../x"}, {"K8S_POD_NAMESPACE": "a.b"}, {"K8S_POD_NAMESPACE": "A"}],
)
def test_a_pod_with_a_name_that_cannot_be_is_refused(args: dict[str, str]) -> None:
    with pytest.raises(CniError) as caught:
        cni_spec.endpoint_name(parse(args=args))
    assert caught.value.code is Code.INVALID_ENVIRONMENT


def test_labels_of_the_container_win_over_those_of_the_network() -> None:
    config = {
        **CONFIG,
        "labels": {"a": "1", "b": "1", "c": "1"},
        "runtimeConfig": {"labels": {"b": "2", "c": "2"}},
    }
    request = parse(config=config, args={"labels": "c=3,d=,"})
    assert cni_spec.labels(request) == {"a": "1", "b": "2", "c": "3", "d": ""}
    assert cni_spec.labels(parse()) == {}
    assert cni_spec.labels(parse(config={**CONFIG, "runtimeConfig": None})) == {}


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"args": {"labels": "nonsense"}}, Code.INVALID_ENVIRONMENT),
        ({"config": {**CONFIG, "labels": ["a"]}}, Code.INVALID_CONFIG),
        ({"config": {**CONFIG, "labels": {"a": 1}}}, Code.INVALID_CONFIG),
        ({"config": {**CONFIG, "runtimeConfig": {"labels": 1}}}, Code.INVALID_CONFIG),
        ({"config": {**CONFIG, "runtimeConfig": [1]}}, Code.INVALID_CONFIG),
    ],
)
def test_labels_that_are_none_are_refused(change: dict[str, Any], code: Code) -> None:
    with pytest.raises(CniError) as caught:
        cni_spec.labels(parse(**change))
    assert caught.value.code is code


def test_gc_needs_a_list_and_never_takes_a_missing_one_for_an_empty_one() -> None:
    rows = [{"containerID": "a", "ifname": "eth0"}, {"containerID": "b", "ifname": "net1"}]
    key = "cni.dev/valid-attachments"
    request = parse(command="GC", config={**CONFIG, key: rows})
    assert cni_spec.valid_plugs(request) == {Plug("a", "eth0"), Plug("b", "net1")}
    assert cni_spec.valid_plugs(parse(command="GC", config={**CONFIG, key: []})) == frozenset()
    for bad in ({}, {key: None}, {key: {}}, {key: [{"containerID": "a"}]}, {key: ["a"]}):
        with pytest.raises(CniError) as caught:
            cni_spec.valid_plugs(parse(command="GC", config={**CONFIG, **bad}))
        assert caught.value.code is Code.INVALID_CONFIG


@pytest.mark.parametrize("version", cni_spec.VERSIONS)
def test_the_result_has_the_shape_of_its_version(version: str) -> None:
    dns = {"nameservers": ["192.0.2.53"]}
    request = parse(config={**CONFIG, "cniVersion": version, "dns": dns})
    plug, newest = request.plug, version == "1.1.0"
    mtu = {"mtu": 1500} if newest else {}
    four, six = ({"version": "4"}, {"version": "6"}) if version == "0.4.0" else ({}, {})
    assert cni_spec.result(request, HOPS, 1500) == {
        "cniVersion": version,
        "interfaces": [
            {"name": plug.host_device, "mac": plug.host_mac, **mtu},
            {"name": "eth0", "mac": plug.pod_mac, "sandbox": "/run/netns/a", **mtu},
        ],
        "ips": [
            {"address": "10.244.1.2/32", "gateway": "10.244.1.1", "interface": 1, **four},
            {"address": "fd00::2/128", "gateway": "fe80::1", "interface": 1, **six},
        ],
        "routes": [
            {"dst": "0.0.0.0/0", "gw": "10.244.1.1", **({"mtu": 1446} if newest else {})},
            {"dst": "::/0", "gw": "fe80::1", **({"mtu": 1426} if newest else {})},
        ],
        "dns": dns,
    }


def test_a_result_that_the_runtime_remembers_otherwise_is_named() -> None:
    plug = Plug("c0ffee", "eth0")
    endpoint = Endpoint(
        EndpointName("shop", "web-0"),
        NodeName("n1"),
        tuple(hop.address for hop in HOPS),
        NUMBER,
        attachment=cni_spec.attachment(plug),
    )
    assert cni_spec.plug_of(endpoint) == plug
    remembered = cni_spec.result(parse(), HOPS, 1500)
    assert cni_spec.missing_from(remembered, endpoint) == []
    assert cni_spec.missing_from(None, endpoint) == []
    remembered["ips"] = remembered["ips"][1:]
    (words,) = cni_spec.missing_from(remembered, endpoint)
    assert words == "prevResult does not have the address 10.244.1.2/32"


@given(st.text(min_size=1), st.text(min_size=1))
def test_devices_and_mac_addresses_follow_from_the_name_alone(
    container: str, interface: str
) -> None:
    plug, other = Plug(container, interface), Plug(container, f"{interface}x")
    assert len(plug.host_device) == 14
    assert plug.host_device == Plug(container, interface).host_device != other.host_device
    macs = {plug.pod_mac, plug.host_mac, other.pod_mac, other.host_mac}
    assert len(macs) == 4
    # Locally administered, and of one device only (IEEE 802).
    assert all(int(mac[:2], 16) & 0x03 == 0x02 for mac in macs)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["labels", "ips", "address", "containerID"]), inner)
    ),
    max_leaves=6,
)
KEYS = ("labels", "runtimeConfig", "prevResult", "cni.dev/valid-attachments", "dns", "name")


@given(st.dictionaries(st.sampled_from(KEYS), JSON), st.dictionaries(st.text(), st.text()))
def test_whatever_stands_in_a_request_the_agent_survives_it(
    config: dict[str, Any], args: dict[str, str]
) -> None:
    request = parse(config={**config, "cniVersion": "1.1.0"}, args=args)
    endpoint = Endpoint(EndpointName("a", "b"), NodeName("n1"), (HOPS[0].address,), NUMBER)
    for use in (
        cni_spec.labels,
        cni_spec.valid_plugs,
        cni_spec.endpoint_name,
        lambda each: cni_spec.result(each, HOPS, 1500),
        lambda each: cni_spec.missing_from(each.config.get("prevResult"), endpoint),
    ):
        with contextlib.suppress(CniError):
            use(request)

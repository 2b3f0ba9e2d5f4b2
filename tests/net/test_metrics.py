# SPDX-License-Identifier: Apache-2.0
"""What Prometheus would read of real agents agrees with what has really happened."""

from __future__ import annotations

import socket
import time
import urllib.request
from collections.abc import Callable

import pytest
from prometheus_client.parser import text_string_to_metric_families

from pellicle import lab
from pellicle.kernel import netns
from pellicle.lab import agents
from pellicle.lab.topology import LabNode
from tests import pace
from tests.net.loaded import load, until

MakeLab = Callable[..., lab.LabState]
N1, N2 = LabNode(1), LabNode(2)
WHERE = "127.0.0.1:9465"
SETTINGS = {"metrics_address": WHERE, "key_lifetime": "3s", "drain_seconds": "1s"}
PINGS = 50
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(node: LabNode) -> Samples:
    """All that the agent says over its socket."""
    time.sleep(1.1)  # it makes no more than one text a second
    text = agents.ask(node, "metrics")[0]["text"]
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(found: Samples, name: str, **labels: str) -> float:
    return found.get((name, tuple(sorted(labels.items()))), 0.0)


def to_peer(found: Samples, what: str, way: str = "out") -> float:
    return value(found, f"pellicle_peer_{what}_total", peer="n2", direction=way)


def ping(count: int) -> None:
    words = ["ping", "-q", "-c", str(count), "-i", "0.02", "-W", "2", "-s", "100", "10.244.2.2"]
    assert lab.exec_("n1/p1", words) == 0


def test_sums_of_a_peer_outlive_its_keys(make_lab: MakeLab) -> None:
    make_lab(2, 1, settings=SETTINGS)
    before, epoch = samples(N1), newest(N1)
    rounds = []
    while newest(N1) < epoch + 3:
        ping(PINGS)
        rounds.append(samples(N1))
    ping(PINGS)
    until(
        lambda: newest(N1) >= epoch + 4, "and once more: the last keys that were used are gone", 60
    )
    after = samples(N1)
    sent = PINGS * (len(rounds) + 1)
    for way in ("out", "in"):
        packets = [to_peer(each, "packets", way) for each in (before, *rounds, after)]
        assert packets == sorted(packets), "no counter falls"
        # Probes are packets, too; no ping is missing for all the SAs that have gone.
        assert sent <= packets[-1] - packets[0] <= sent + 40 * len(rounds) + 200
        octets = to_peer(after, "bytes", way) - to_peer(before, "bytes", way)
        assert sent * 128 <= octets
    assert value(after, "pellicle_peer_ready", peer="n2") == 1


def test_what_is_sent_under_load_is_what_peers_got(make_lab: MakeLab, engine: str) -> None:
    """All the while keys are made anew."""
    make_lab(2, 1, settings=SETTINGS)
    before, before_there = samples(N1), samples(N2)
    with load("n1/p1", "n2/p1", 4, pps=pace.amount(2000, 200)) as run:
        time.sleep(pace.patient(8))
        outcome = run.stop()
    assert outcome.is_intact
    found, there = samples(N1), samples(N2)
    sent = to_peer(found, "packets") - to_peer(before, "packets")
    if engine == "bpf":
        sealed = encrypted(found) - encrypted(before)
        assert abs(sealed - sent) <= 20, "all that was sealed was sealed for the one peer"
    got = from_peer(there) - from_peer(before_there)
    refused = drops(there) - drops(before_there)
    assert sent - refused - outcome.overflowed - 20 <= got <= sent + 20


def encrypted(found: Samples) -> float:
    reasons = ("SEALED", "PROBE_SENT")
    return sum(
        value(found, "pellicle_packets_total", reason=reason, verdict="encrypted")
        for reason in reasons
    )


def from_peer(found: Samples) -> float:
    return value(found, "pellicle_peer_packets_total", peer="n1", direction="in")


def drops(found: Samples) -> float:
    return sum(
        number
        for (name, labels), number in found.items()
        if name == "pellicle_packets_total" and ("verdict", "dropped") in labels
    )


def test_how_far_the_kernel_is_from_the_tables(make_lab: MakeLab) -> None:
    make_lab(2, 1, settings=SETTINGS)
    found = samples(N1)
    behind = {labels[0][1]: seconds for (name, labels), seconds in found.items()
              if name == "pellicle_reconcile_lag_seconds"}  # fmt: skip
    assert {"ipcache", "sas", "routes", "programs", "door"} <= behind.keys()
    assert set(behind.values()) == {0.0}
    for (name, _), moment in found.items():
        if name == "pellicle_reconcile_refresh_timestamp_seconds":
            assert time.time() - 120 < moment <= time.time() + 1
    assert value(found, "pellicle_encryption_enabled") == 1
    assert [name for name, _ in found if name == "pellicle_build_info"]
    assert value(found, "process_start_time_seconds") > 0


def test_prometheus_asks_over_http(make_lab: MakeLab) -> None:
    make_lab(2, 1, settings=SETTINGS)
    text, kind = scraped(N1, "/metrics")
    assert kind.startswith("text/plain; version=0.0.4")
    families = {family.name for family in text_string_to_metric_families(text)}
    assert {"pellicle_packets", "pellicle_peer_bytes", "pellicle_reconcile_lag_seconds"} <= families
    assert scraped(N1, "/healthz")[0] == "ok\n"
    with pytest.raises(OSError, match="404"):
        scraped(N1, "/status")


def test_an_address_that_is_taken_keeps_the_agent_from_starting(make_lab: MakeLab) -> None:
    make_lab(2, 1, settings=SETTINGS)
    lab.kill_agent("n1")
    with taken(N1), pytest.raises(lab.LabError, match=r"metrics_address 127\.0\.0\.1:9465"):
        lab.start_agent("n1")
    lab.start_agent("n1")


def taken(node: LabNode) -> socket.socket:
    """The address in somebody else's hands; a killed agent may let go of it only a moment later."""
    deadline = time.monotonic() + pace.patient(5)
    while True:
        try:
            with netns.inside(node.namespace):
                return socket.create_server(("127.0.0.1", 9465))
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)


def scraped(node: LabNode, path: str) -> tuple[str, str]:
    """What that node's namespace gets, and of which kind it is."""
    url = f"http://{WHERE}{path}"
    with netns.inside(node.namespace), urllib.request.urlopen(url, timeout=20) as answer:
        return answer.read().decode(), answer.headers["Content-Type"]


def newest(node: LabNode) -> int:
    return max(int(offer["epoch"]) for offer in agents.ask(node, "encrypt")[0]["offers"])

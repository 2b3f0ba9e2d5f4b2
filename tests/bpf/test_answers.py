# SPDX-License-Identifier: Apache-2.0
"""What the agent shows of real maps: every row that the datapath works with, and no key."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pellicle.answers import flows, maps
from pellicle.flows.decode import Decoder
from pellicle.flows.history import History
from pellicle.serve import CallError, Request
from pellicle.sight import Sight
from tests.bpf.cluster import OVER4, POD4, furnish, put_inbound, put_outbound
from tests.bpf.node import Node, loaded_node
from tests.bpf.packets import frame, ip
from tests.bpf.tunnel import sealed

WORDS = b"nobody may read this"


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with loaded_node(tmp_path) as loaded:
        furnish(loaded)
        put_outbound(loaded, OVER4)
        put_inbound(loaded, OVER4)
        loaded.run("door", frame(ip(POD4, OVER4.pod4, WORDS)))
        loaded.run("from_net", sealed(OVER4, 1, ip(OVER4.pod4, POD4, WORDS)))
        yield loaded


@pytest.fixture
def sight(node: Node) -> Sight:
    """As much of it as these calls look at."""
    parts = {
        "bpf": node.object,
        "decoder": Decoder.of(node.object.btf, {}),
        "history": History(),
        "names": SimpleNamespace(rows={}),
    }
    return cast("Sight", SimpleNamespace(**parts))


def test_every_map_with_rows_is_shown_and_none_shows_a_key(sight: Sight) -> None:
    listed = {row["name"] for row in maps(sight, None)}
    assert {"sa_in", "sa_out", "ipcache", "counts"} <= listed
    assert "scratch" not in listed
    keys = [keys for number in range(4) for keys in (OVER4.keys_out(number), OVER4.keys_in(number))]
    for name in listed - {"events"}:
        shown = json.dumps(maps(sight, name))
        for each in keys:
            assert not any(
                str(int.from_bytes(each.key[at : at + 4], "little")) in shown
                for at in range(0, 32, 4)
            )
        assert WORDS.hex(":") not in shown


@pytest.mark.parametrize("name", ["scratch", ".rodata", "events", "", 5, ["sa_in"], {}, True])
def test_other_maps_are_refused(sight: Sight, name: object) -> None:
    """In scratch are the state of ChaCha20, from which the key follows, and what pods have said."""
    with pytest.raises(CallError, match="map"):
        maps(sight, name)


@pytest.mark.parametrize(
    "arguments",
    [{"last": "many"}, {"last": -1}, {"last": {}}, {"from": 5}, {"to": []}, {"verdict": "maybe"},
     {"verdict": ["clear"]}, {"from": "300.1.1.1"}, {"follow": "no"}],
    ids=str,
)  # fmt: skip
async def test_odd_wishes_are_refused_in_words(sight: Sight, arguments: dict[str, Any]) -> None:
    with pytest.raises(CallError):
        await anext(flows(sight, Request("flows", arguments)))


async def test_flows_without_wishes(sight: Sight) -> None:
    assert await _reasons(sight, {}) == ["SEALED", "OPENED"]
    assert await _reasons(sight, {"last": 1}) == ["OPENED"]
    assert await _reasons(sight, {"last": 0}) == []


async def test_flows_tell_the_engine(sight: Sight, node: Node) -> None:
    node.clear("encrypt")
    node.run("from_pod", frame(ip(POD4, OVER4.pod4)))
    shown = [row async for row in flows(sight, Request("flows", {}))]
    assert [(row["reason"], row["engine"]) for row in shown] == [
        ("SEALED", "bpf"), ("OPENED", "bpf"), ("DROP_NO_KEY", ""),
    ]  # fmt: skip


async def _reasons(sight: Sight, arguments: dict[str, Any]) -> list[str]:
    return [row["reason"] async for row in flows(sight, Request("flows", arguments))]

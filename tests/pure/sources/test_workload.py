# SPDX-License-Identifier: Apache-2.0
"""The Workload API followed, and what of it is believed: a real server on a real socket."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pellicle.facts import NodeName
from pellicle.keys.spiffe import Spiffe
from pellicle.keys.svid import SvidError
from pellicle.sources import workload
from pellicle.sources.workload import WorkloadApi
from pellicle.wire.spiffe import (
    MAX_RESPONSE,
    Malformed,
    RawSvid,
    Response,
    read_response,
    split_der,
)
from tests import spiffe
from tests.spiffe import Authority, Issued, der, ec_key, field_of, response, varint

N1 = NodeName("n1")
PATH = "/pellicle/node/n1"
AUTHORITY, OTHER = Authority("example.org"), Authority("other.example")
SVID = AUTHORITY.svid(PATH)
SECONDS = 20.0


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[spiffe.WorkloadApi]:
    monkeypatch.setattr(workload, "FIRST_PAUSE_SECONDS", 0.05)
    with spiffe.WorkloadApi(tmp_path / "api.sock") as running:
        yield running


@asynccontextmanager
async def following(api: spiffe.WorkloadApi) -> AsyncIterator[tuple[WorkloadApi, Heard]]:
    client = WorkloadApi(api.socket)
    async with aclosing(client.responses()) as responses:  # type: ignore[type-var]
        yield client, Heard(responses)


class Heard:
    """What comes, one at a time."""

    def __init__(self, responses: AsyncIterator[Response]) -> None:
        self._responses = responses

    async def next(self) -> Response:
        async with asyncio.timeout(SECONDS):
            return await anext(self._responses)


async def test_every_answer_is_heard_and_a_stream_that_breaks_is_opened_again(
    api: spiffe.WorkloadApi,
) -> None:
    async with following(api) as (client, heard):
        assert "has not answered yet" in str(client.problem)
        api.say(response([SVID], {"spiffe://other.example": OTHER.bundle}))
        first = await heard.next()
        assert first.svids[0] == RawSvid(
            f"spiffe://example.org{PATH}", der(*SVID.chain), SVID.key_der, AUTHORITY.bundle
        )
        assert first.federated == {"spiffe://other.example": OTHER.bundle}
        assert client.problem is None
        renewed = AUTHORITY.svid(PATH)
        api.say(response([renewed]))
        assert (await heard.next()).svids[0].chain == der(*renewed.chain)
        api.stop()
        waiting = asyncio.ensure_future(heard.next())
        await until(lambda: "keys go on until" in str(client.problem))
        api.start()
        assert (await waiting).svids[0].chain == der(*renewed.chain)
        assert client.problem is None
        assert api.asked >= 2


async def until(holds: object) -> None:
    assert callable(holds)
    async with asyncio.timeout(SECONDS):
        while not holds():
            await asyncio.sleep(0.02)


@pytest.mark.parametrize(
    ("said", "words"),
    [
        (grpc.StatusCode.PERMISSION_DENIED, "no identity for this workload: register it"),
        (grpc.StatusCode.INTERNAL, "INTERNAL: no identity issued"),
        (b"\x0a\x05ab", "its answer cannot be read: a field of 5 bytes is cut off"),
        (b"\x00" * (MAX_RESPONSE + 1), "RESOURCE_EXHAUSTED"),
    ],
    ids=["not registered", "broken", "garbage", "huge"],
)
async def test_an_answer_that_is_none_is_named_and_asked_for_again(
    api: spiffe.WorkloadApi, said: bytes | grpc.StatusCode, words: str
) -> None:
    api.say(said)
    async with following(api) as (client, heard):
        waiting = asyncio.ensure_future(heard.next())
        await until(lambda: words in str(client.problem))
        api.say(response([SVID]))
        assert len((await waiting).svids) == 1


async def test_a_socket_that_is_not_there_is_waited_for(api: spiffe.WorkloadApi) -> None:
    api.stop()
    async with following(api) as (client, heard):
        waiting = asyncio.ensure_future(heard.next())
        await until(lambda: "UNAVAILABLE" in str(client.problem))
        api.start()
        api.say(response([SVID]))
        assert len((await waiting).svids) == 1


# --- what is believed -------------------------------------------------------------------------

CUT = replace(SVID, bundle=SVID.bundle[:-1])
WRONG_KEY = replace(SVID, key=ec_key())
MISNAMED = replace(SVID, spiffe_id="spiffe://example.org/pellicle/node/n2")
HOSTILE: dict[str, tuple[list[Issued], str]] = {
    "nothing": ([], "has no identity"),
    "another key": ([WRONG_KEY], "its private key is not that of its certificate"),
    "another name": ([MISNAMED], f"its certificate is that of spiffe://example.org{PATH}"),
    "a bundle that is cut off": ([CUT], "is cut off"),
    "no bundle": ([replace(SVID, bundle=b"")], "its trust bundle is empty"),
    "no chain": ([replace(SVID, chain=())], "no certificate"),
    "another domain's bundle": ([replace(SVID, bundle=OTHER.bundle)], "does not end at"),
    "another node's": ([AUTHORITY.svid("/pellicle/node/n2")], "this node is to be"),
    "another trust domain's": ([OTHER.svid("/web")], "this node is to be"),
}


def believer() -> Spiffe:
    made = Spiffe(N1, ["spiffe://{trust_domain}/pellicle/node/{node}"], lambda: 0.0)
    made.take(read_response(response([SVID])))
    return made


@pytest.mark.parametrize("says", HOSTILE)
def test_what_is_no_svid_of_ours_changes_nothing(says: str) -> None:
    svids, words = HOSTILE[says]
    made = believer()
    before = made.svid, made.bundles
    with pytest.raises(SvidError) as refused:
        made.take(read_response(response(svids)))
    assert words in str(refused.value)
    assert (made.svid, made.bundles) == before
    # A good one beside it is taken.
    assert made.take(read_response(response([*svids, AUTHORITY.svid(PATH)]))).is_svid_new


def test_news_are_told_apart() -> None:
    made = believer()
    assert made.take(read_response(response([SVID]))) == (False, False)
    assert made.take(read_response(response([AUTHORITY.svid(PATH)]))) == (True, False)
    federated = {"spiffe://other.example": OTHER.bundle}
    assert made.take(read_response(response([made_again(made)], federated))) == (False, True)
    assert set(made.bundles) == {"example.org", "other.example"}
    assert made.take(read_response(response([made_again(made)]))) == (False, True)
    assert set(made.bundles) == {"example.org"}, "federation that ended"


def made_again(made: Spiffe) -> Issued:
    svid = made.svid
    assert svid
    return Issued(str(svid.id), svid.chain, svid.key, AUTHORITY.bundle)


def test_a_federated_bundle_that_is_wrong_is_left_out_and_named() -> None:
    made = believer()
    bad = {
        "spiffe://other.example": OTHER.bundle[:-1],
        "spiffe://": OTHER.bundle,
        "good.example": OTHER.bundle,
    }
    made.take(read_response(response([SVID], bad)))
    assert set(made.bundles) == {"example.org", "good.example"}
    assert [each.name for each in made.rejected] == [
        "bundle spiffe://other.example",
        "bundle spiffe://",
    ]


def test_a_federated_bundle_never_stands_for_our_own() -> None:
    made = believer()
    made.take(read_response(response([SVID], {"spiffe://example.org": OTHER.bundle})))
    assert [each.subject for each in made.bundles["example.org"]] == [AUTHORITY.root.subject]


# --- the codec --------------------------------------------------------------------------------


def test_fields_that_are_not_known_are_passed_over() -> None:
    extra = field_of(9, b"later") + varint(8 << 3) + varint(300) + varint(7 << 3 | 5) + b"1234"
    raw = extra + response([SVID]) + varint(6 << 3 | 1) + b"12345678"
    assert read_response(raw) == read_response(response([SVID]))


@given(st.binary(max_size=600))
def test_any_bytes_are_an_answer_or_are_refused(raw: bytes) -> None:
    whole = response([SVID])
    for text in (raw, whole[:300] + raw, field_of(1, raw), field_of(3, raw)):
        try:
            read_response(text)
        except Malformed:
            continue


@given(st.lists(st.binary(max_size=70_000), max_size=4))
def test_certificates_are_told_apart(bodies: list[bytes]) -> None:
    elements = []
    for body in bodies:
        size = len(body)
        long = size.to_bytes(3, "big")
        head = bytes((size,)) if size < 0x80 else b"\x83" + long
        elements.append(b"\x30" + head + body)
    assert split_der(b"".join(elements)) == tuple(elements)

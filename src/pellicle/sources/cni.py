# SPDX-License-Identifier: Apache-2.0
"""Pods come and go: what the agent does when the container runtime calls the CNI plugin.

    ADD  addresses ▸ identity ▸ veth, down ▸ program on it ▸ up, routes ▸ Endpoint resource
         ▸ wait until the datapath knows the pod ▸ answer
    DEL  veth ▸ program ▸ Endpoint resource ▸ addresses

An ADD that fails anywhere does a DEL of its own. Nothing is remembered on the side: what
stands is in the kernel, found by a name computed from container and interface, and in this
node's own Endpoint resources, from which `adopt` rebuilds everything after a restart.
Calls for one container follow each other; all others run side by side.
"""

from __future__ import annotations

import asyncio
from collections.abc import (
    Awaitable,
    Callable,
    Collection,
    Coroutine,
    Hashable,
    Iterable,
    Mapping,
)
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar
from weakref import WeakValueDictionary

import structlog

from pellicle.facts import Endpoint, EndpointName, Identity, Network, NodeName
from pellicle.identity import LabelError, canonical
from pellicle.sources import cni_spec, directory, veth
from pellicle.sources.cni_spec import CniError, Code, Hop, Mtu, Plug, Request
from pellicle.sources.pool import Exhausted, Pools
from pellicle.sources.veth import Veth
from pellicle.wire.link import LinkInfo

READY_SECONDS = 10.0
"""How long an ADD waits for the datapath; the plugin itself waits twice as long."""
CHECK_SECONDS = 1.0

P = ParamSpec("P")
T = TypeVar("T")

log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Records:
    """Where Endpoint and Identity resources are kept. These calls may block."""

    write: Callable[[Endpoint], object]
    remove: Callable[[Endpoint], object]
    claim: Callable[[str, Mapping[str, str]], Identity]

    @classmethod
    def in_directory(cls, path: Path) -> Records:
        return cls(
            partial(directory.write_endpoint, path),
            partial(directory.remove_endpoint, path),
            partial(directory.claim_identity, path),
        )


@dataclass(frozen=True, slots=True)
class Datapath:
    """What a pod needs of the datapath. These are called in the event loop."""

    attach: Callable[[str, int], None]
    """Put from_pod on a host device (name, ifindex) that nothing can be sent through yet."""
    detach: Callable[[str], None]
    """Forget a host device that is gone; absent is success."""
    ready: Callable[[Endpoint, int], Awaitable[None]]
    """Returns once the rows of this very endpoint, behind this ifindex, stand in the kernel."""
    mtu: Callable[[], Mtu]
    trouble: Callable[[], str]
    """Why no pod can be added now, in words; empty when one can."""


class Cni:
    """The attachments of this node."""

    def __init__(
        self,
        node: NodeName,
        pod_cidrs: Iterable[Network],
        records: Records,
        datapath: Datapath,
        *,
        ready_seconds: float = READY_SECONDS,
    ) -> None:
        self._node, self._cidrs = node, tuple(pod_cidrs)
        self._records, self._datapath = records, datapath
        self._ready_seconds = ready_seconds
        self._pools = Pools(self._cidrs)
        self._endpoints: dict[Plug, Endpoint] = {}
        """Attachments that stand or are being made."""
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()
        self._is_adopted = False

    async def call(self, arguments: Mapping[str, Any], netns_fd: int | None) -> dict[str, Any]:
        """Answers one call `cni` of the agent's socket; `CniError` is for the runtime."""
        request = cni_spec.parse(arguments)
        if not self._is_adopted:
            why = "the agent has just started and does not know its pods yet"
            code = Code.UNAVAILABLE if request.command == "STATUS" else Code.TRY_AGAIN_LATER
            raise CniError(code, why, "it will in a moment; else see the agent's log")
        try:
            return await self._answer(request, netns_fd)
        except Exhausted as error:
            raise CniError(Code.POOL_EXHAUSTED, str(error)) from error
        except LabelError as error:
            raise CniError(Code.INVALID_CONFIG, f"labels: {error}") from error
        except OSError as error:
            raise CniError(Code.IO_FAILURE, str(error.strerror or error)) from error

    async def adopt(self, endpoints: Iterable[Endpoint], links: Iterable[str]) -> None:
        """Takes over what an earlier agent left: its resources, and the devices of this node.

        Call it once, with the first complete listing. Resources whose device is gone are
        removed, and so are devices that no resource claims: they belong to calls that
        never ended, or to pods that ended while nobody looked.
        """
        devices = {name for name in links if veth.is_host_device(name)}
        own = [endpoint for endpoint in endpoints if endpoint.node == self._node]
        gone = [each for each in own if _has_lost_device(each, devices)]
        removed = {each.name for each in gone if await self._is_removed(each)}
        kept = [each for each in own if each.name not in removed]
        self._pools = Pools(self._cidrs, (address for each in kept for address in each.addresses))
        plugs = ((cni_spec.plug_of(endpoint), endpoint) for endpoint in kept)
        self._endpoints = {plug: endpoint for plug, endpoint in plugs if plug is not None}
        for device in devices - {plug.host_device for plug in self._endpoints}:
            log.info("device of no pod", device=device)
            try:
                await self._cut(device)
            except OSError as error:
                log.warning("device cannot be removed", device=device, why=str(error))
        self._is_adopted = True

    async def add(self, request: Request, netns_fd: int | None) -> dict[str, Any]:
        """Connects a container; the same answer when it is connected already."""
        if netns_fd is None:
            raise CniError(Code.INVALID_ENVIRONMENT, "CNI_NETNS: no network namespace came along")
        if why := veth.why_not(netns_fd):
            raise CniError(Code.INVALID_ENVIRONMENT, f"CNI_NETNS {request.netns}: {why}")
        if why := self._datapath.trouble():
            raise CniError(Code.TRY_AGAIN_LATER, f"no pod can be added now: {why}")
        name, labels = cni_spec.endpoint_name(request), cni_spec.labels(request)
        canonical(name.namespace, labels)
        async with self._lock(name):
            await self._supersede(name, request.plug)
            async with self._lock(request.plug.host_device):
                try:
                    return await self._connect(request, name, labels, netns_fd)
                except BaseException:
                    await self._undo_failed(request.plug)
                    raise

    async def delete(self, request: Request) -> None:
        """Takes a container's interface away; success when it is not there."""
        await self._disconnect(request.plug)

    async def check(self, request: Request, netns_fd: int | None) -> None:
        """Compares what was promised with what stands; `CniError` names every difference."""
        async with self._lock(request.plug.host_device):
            endpoint = self._endpoints.get(request.plug)
            if endpoint is None:
                why = f"container {request.container_id} has no {request.ifname} of Pellicle's"
                raise CniError(Code.UNKNOWN_CONTAINER, why)
            found = cni_spec.missing_from(request.config.get("prevResult"), endpoint)
            if self._pools.covers(endpoint.addresses):
                found += await _blocking(veth.differences, self._veth(request, endpoint), netns_fd)
            else:
                found.append("its addresses are not in the node's pod CIDRs any more")
            if not await self._is_ready(endpoint, CHECK_SECONDS):
                found.append("the datapath does not know the pod")
        if found:
            hint = "delete the pod, so that it is made anew"
            raise CniError(Code.DIFFERENT, f"{endpoint.name}: {'; '.join(found)}", hint)

    async def gc(self, request: Request) -> None:
        """Removes what this network has and the runtime does not know of."""
        valid, network = cni_spec.valid_plugs(request), str(request.config.get("name", ""))
        devices = await _blocking(veth.devices)
        mine = {name for name in devices if _is_of(network, devices[name])}
        gone = [
            plug
            for plug in self._endpoints
            if plug not in valid and (plug.host_device in mine or plug.host_device not in devices)
        ]
        known = {plug.host_device for plug in (*valid, *self._endpoints)}
        failures = []
        for act in (
            *(partial(self._disconnect, plug) for plug in gone if not self._is_busy(plug)),
            *(partial(self._cut_unclaimed, device) for device in mine - known),
        ):
            log.info("garbage collected", what=str(act.args[0]))
            try:
                await act()
            except OSError as error:
                failures.append(f"{act.args[0]}: {error.strerror or error}")
        if failures:
            raise CniError(Code.IO_FAILURE, f"not all could be removed: {'; '.join(failures)}")

    async def status(self) -> None:
        """`CniError` when an ADD could not succeed."""
        why = self._datapath.trouble()
        if not why and not self._cidrs:
            why = "this node has no pod CIDR"
        if not why:
            why = self._pools.shortage()
        if why:
            raise CniError(Code.UNAVAILABLE, f"no pod can be added now: {why}")

    async def _answer(self, request: Request, netns_fd: int | None) -> dict[str, Any]:
        match request.command:
            case "ADD":
                return await self.add(request, netns_fd)
            case "DEL":
                await self.delete(request)
            case "CHECK":
                await self.check(request, netns_fd)
            case "GC":
                await self.gc(request)
            case "STATUS":
                await self.status()
        return {}

    async def _connect(
        self, request: Request, name: EndpointName, labels: dict[str, str], netns_fd: int
    ) -> dict[str, Any]:
        known = self._endpoints.get(request.plug)
        if known is not None and not self._pools.covers(known.addresses):
            await _finished(self._undo(request.plug))
            known = None
        endpoint = await self._claim(request.plug, name, labels, known)
        wanted = self._veth(request, endpoint)
        missing = await _blocking(veth.differences, wanted, netns_fd) if known else ["everything"]
        if missing:
            index = await _blocking(veth.create, wanted, netns_fd)
            self._datapath.attach(wanted.plug.host_device, index)
            await _blocking(veth.configure, wanted, index, netns_fd)
        await _blocking(self._records.write, endpoint)
        if not await self._is_ready(endpoint, self._ready_seconds):
            why = f"{name}: not in the datapath within {self._ready_seconds:g} s"
            raise CniError(Code.TRY_AGAIN_LATER, why, "`pellicle status` shows what is in its way")
        return cni_spec.result(request, wanted.hops, wanted.mtu)

    async def _claim(
        self, plug: Plug, name: EndpointName, labels: dict[str, str], known: Endpoint | None
    ) -> Endpoint:
        """The endpoint as it shall be, its addresses and its place in `_endpoints` taken."""
        if not self._cidrs:
            raise CniError(Code.TRY_AGAIN_LATER, "this node has no pod CIDR", "set pod_cidrs")
        endpoint = Endpoint(
            name,
            self._node,
            known.addresses if known else self._pools.take(),
            cni_spec.NO_IDENTITY,
            labels,
            cni_spec.attachment(plug),
        )
        self._endpoints[plug] = endpoint
        identity = await _blocking(self._records.claim, name.namespace, labels)
        self._endpoints[plug] = replace(endpoint, identity=identity.number)
        return self._endpoints[plug]

    async def _is_ready(self, endpoint: Endpoint, seconds: float) -> bool:
        device = endpoint.attachment.host_device if endpoint.attachment else ""
        found = (await _blocking(veth.devices)).get(device)
        if found is None:
            return False
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                await self._datapath.ready(endpoint, found.index)
        except TimeoutError:
            if not limit.expired():
                raise
            return False
        return True

    async def _supersede(self, name: EndpointName, plug: Plug) -> None:
        """A pod that comes back in another container takes the place of what it was."""
        for other, endpoint in list(self._endpoints.items()):
            if endpoint.name != name or other == plug:
                continue
            if other.container_id == plug.container_id:
                why = f"{name} has the interface {other.interface} already: one pod, one interface"
                raise CniError(Code.SECOND_INTERFACE, why)
            log.info("pod has a new container", pod=str(name), old=other.container_id)
            await self._disconnect(other)

    async def _disconnect(self, plug: Plug) -> None:
        async with self._lock(plug.host_device):
            await _finished(self._undo(plug))

    async def _undo(self, plug: Plug) -> None:
        """All traces of `plug`, the addresses last: what fails is found again by the next DEL."""
        await self._cut(plug.host_device)
        endpoint = self._endpoints.get(plug)
        if endpoint is not None:
            await _blocking(self._records.remove, endpoint)
            del self._endpoints[plug]
            self._pools.give_back(endpoint.addresses)

    async def _is_removed(self, endpoint: Endpoint) -> bool:
        """Removes the resource of a pod that is gone; if that fails, a DEL or GC has to."""
        log.info("pod is gone", pod=str(endpoint.name))
        try:
            await _blocking(self._records.remove, endpoint)
        except OSError as error:
            log.warning("resource cannot be removed", pod=str(endpoint.name), why=str(error))
            return False
        return True

    async def _undo_failed(self, plug: Plug) -> None:
        try:
            await _finished(self._undo(plug))
        except OSError as error:  # the runtime shall hear what came first; its DEL tries again
            log.warning("a failed ADD left something", device=plug.host_device, why=str(error))

    async def _cut(self, host_device: str) -> None:
        """The device first: while it stands, so does the program that watches it."""
        await _blocking(veth.remove, host_device)
        self._datapath.detach(host_device)

    async def _cut_unclaimed(self, host_device: str) -> None:
        async with self._lock(host_device):
            if all(plug.host_device != host_device for plug in self._endpoints):
                await self._cut(host_device)

    def _veth(self, request: Request, endpoint: Endpoint) -> Veth:
        mtu = self._datapath.mtu()
        hops = tuple(
            Hop(address, veth.GATEWAY6, mtu.v6)
            if address.version == 6
            else Hop(address, self._pools.gateway(address), mtu.v4)
            for address in endpoint.addresses
        )
        network = str(request.config.get("name", ""))
        return Veth(request.plug, network, str(endpoint.name), hops, mtu.device)

    def _lock(self, what: Hashable) -> asyncio.Lock:
        """Never two of devices at once, and a pod's before a device's: no circle can form."""
        lock = self._locks.get(what)
        if lock is None:
            lock = self._locks[what] = asyncio.Lock()
        return lock

    def _is_busy(self, plug: Plug) -> bool:
        lock = self._locks.get(plug.host_device)
        return lock is not None and lock.locked()


async def _blocking(act: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Runs `act` in a thread, which cannot be cancelled."""
    return await _finished(asyncio.to_thread(act, *args, **kwargs))


async def _finished(work: Coroutine[Any, Any, T]) -> T:
    """Does all of `work`; when cancelled, ends it first: nothing goes on behind, or stays half."""
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait([task])
        if not task.cancelled() and (error := task.exception()):
            log.warning("failed while the call was cancelled", why=str(error))
        raise


def _has_lost_device(endpoint: Endpoint, devices: Collection[str]) -> bool:
    return endpoint.attachment is not None and endpoint.attachment.host_device not in devices


def _is_of(network: str, link: LinkInfo) -> bool:
    return veth.is_host_device(link.name) and veth.network_of(link) in ("", network)

# SPDX-License-Identifier: Apache-2.0
"""`pellicle lab`: a cluster of real nodes in network namespaces of this machine."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from pellicle.cli.lab_access import as_meant, in_lab, known_node, node_argument, progress
from pellicle.cli.lab_members import MEMBERS
from pellicle.cli.options import speaks_json
from pellicle.cli.printed import print_json, print_page
from pellicle.cli.trouble import Exit

if TYPE_CHECKING:
    from pellicle.lab import LabState


@click.group()
def lab() -> None:
    """A cluster of real nodes on this machine.

    Agents and pods live in network namespaces. Nodes are n1, n2 …, pods n1/p1, n1/p2 …; all of
    them hang on a routed wire that you can listen to. `down` leaves nothing behind.

    \b
    Examples:
      pellicle lab up --nodes 3 --pods 2
      pellicle lab exec n1/p1 ping -c 3 10.244.2.2
      pellicle lab sniff --filter clear
      pellicle status --node n1
      pellicle lab down
    """


@lab.command()
@click.option("--nodes", default=3, show_default=True, help="How many nodes.")
@click.option("--pods", default=2, show_default=True, help="Pods on each node.")
@click.option(
    "--encrypt/--no-encrypt", default=True, help="Encryption between nodes.  [default: on]"
)
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    metavar="ENGINE[,NODE=ENGINE…]",
    help="What encrypts: auto, bpf or xfrm; and on which nodes something else.",
)
@click.option(
    "--routing",
    type=click.Choice(["direct", "overlay"]),
    help="How pods' packets go from node to node.  [default: direct]",
)
@click.option(
    "--overlay",
    type=click.Choice(["vxlan", "geneve"]),
    help="The tunnel of the routing overlay.  [default: vxlan]",
)
@click.option("--mtu", default=1500, show_default=True, help="Of the wire.")
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="NAME=VALUE",
    help="Any other setting of the agents, VALUE in YAML; may be repeated.",
)
@speaks_json
def up(
    *,
    nodes: int,
    pods: int,
    encrypt: bool,
    engine: str,
    routing: str | None,
    overlay: str | None,
    mtu: int,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Make a lab of this shape stand.

    What stands already is repaired, grown or shrunk; agents whose settings change are restarted.

    \b
    Examples:
      pellicle lab up
      pellicle lab up --nodes 5 --pods 1 --mtu 9000
      pellicle lab up --no-encrypt
      pellicle lab up --engine xfrm,n2=bpf
      pellicle lab up --routing overlay --overlay geneve
      pellicle lab up --set drain_seconds=2
    """
    with in_lab():
        from pellicle.lab import up as make
        from pellicle.lab.topology import Shape

        with as_meant():
            ways = {"routing": routing, "overlay": overlay}
            said = {name: value for name, value in ways.items() if value}
            said |= map(_setting, settings)
            shape = Shape(nodes, pods, engine, encrypt, mtu, said)
        state = make(
            shape.nodes,
            shape.pods,
            engine=shape.engine,
            encrypt=shape.encrypt,
            mtu=shape.mtu,
            settings=shape.settings,
            progress=progress,
        )
    _show(state, as_json=as_json)


def _setting(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"--set {text}: a setting is NAME=VALUE, as in drain_seconds=2")
    return name.replace("-", "_"), yaml.safe_load(value)


@lab.command()
def down() -> None:
    """Remove the lab: agents, pods, namespaces, BPF maps, files. With no lab, do nothing.

    \b
    Example:
      pellicle lab down
    """
    with in_lab():
        from pellicle.lab import down as remove

        remove(progress)


@lab.command()
@speaks_json
@click.pass_context
def status(context: click.Context, *, as_json: bool) -> None:
    """Nodes, agents and pods, and what is wrong with them.

    \b
    Examples:
      pellicle lab status
      pellicle lab status --json | jq '.nodes[].pods[].addresses'

    Exit codes: 0 ready, 1 not ready or no lab.
    """
    with in_lab():
        from pellicle.lab import status as look

        state = look()
    _show(state, as_json=as_json)
    context.exit(Exit.WELL if state.is_ready else Exit.DEGRADED)


def _show(state: LabState, *, as_json: bool) -> None:
    if as_json:
        print_json(state.to_json())
        return
    from pellicle.ui.lab import lab as page

    print_page(lambda width: page(state, width))


@lab.command(
    "exec", context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False}
)
@click.argument("where")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED)
@click.pass_context
def exec_(context: click.Context, where: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in a pod, on a node or on the wire.

    WHERE is n1/p1, n1 or wire. The exit code of COMMAND becomes ours.

    \b
    Examples:
      pellicle lab exec n1/p1 -- ping -c 3 10.244.2.2
      pellicle lab exec n1 ip route show table 200
      pellicle lab exec wire tcpdump -ni n1
      pellicle lab exec n2/p1 bash
    """
    with in_lab():
        from pellicle.lab import exec_ as run
        from pellicle.lab.topology import namespace_of

        with as_meant():
            namespace_of(where)
        # Click leaves in what separates our words from the command's.
        code = run(where, command[1:] if command[0] == "--" else command)
    context.exit(code)


@lab.command()
@click.option("--write", type=click.Path(path_type=Path), help="Also write a pcap file.")
@click.option("--filter", "filter_", metavar="WORDS", default="", help="Only such packets.")
@click.option("--seconds", type=float, help="Stop after this long.  [default: at Ctrl-C]")
def sniff(*, write: Path | None, filter_: str, seconds: float | None) -> None:
    """Listen on the wire as a stranger would.

    ESP is green, cleartext between pods is red.

    WORDS must all hold: a kind (esp, clear, link, other), a protocol (tcp, udp, icmp, icmpv6, arp),
    a family (ipv4, ipv6), a node (n1), an address; "not" turns the next one around.

    \b
    Examples:
      pellicle lab sniff
      pellicle lab sniff --filter "clear not icmp"
      pellicle lab sniff --seconds 10 --write wire.pcap
    """
    with in_lab():
        from pellicle.lab import sniff as listen
        from pellicle.lab.sniff import parse_filter

        with as_meant():
            parse_filter(filter_)
        heard = listen(write, filter_, seconds)
    sums: Counter[str] = Counter()
    for flow, count in heard.counts.items():
        sums[flow.kind.value] += count.packets
    parts = [f"{packets} {kind}" for kind, packets in sorted(sums.items())]
    click.echo(f"heard: {', '.join(parts) or 'nothing'}", err=True)
    if heard.lost:
        click.echo(f"{heard.lost} more came too fast for this machine", err=True)


@lab.command()
@speaks_json
@click.pass_context
def check(context: click.Context, *, as_json: bool) -> None:
    """Does the lab that stands do what it should?

    All pods and nodes, and pods in their nodes' network, talk to those of other nodes, by TCP, UDP
    and ICMP, in both families and three sizes. A listener on the wire hears what it can: nothing,
    with encryption on.

    \b
    Examples:
      pellicle lab check
      pellicle lab check --json | jq .problems

    Exit codes: 0 well, 1 not.
    """
    with in_lab():
        from pellicle.lab.check import check as look

        found = look(progress)
    if as_json:
        print_json(found.to_json())
    else:
        from pellicle.ui.lab import checked

        print_page(lambda width: checked(found, width))
    context.exit(Exit.WELL if found.is_well else Exit.DEGRADED)


@lab.command()
@node_argument
@click.option("--lines", default=40, show_default=True, help="How many, from the end.")
def log(node: str, lines: int) -> None:
    """The end of the agent's log on NODE.

    \b
    Example:
      pellicle lab log n1
    """
    with in_lab():
        text = known_node(node).log.read_text(errors="replace")
    sys.stdout.writelines(text.splitlines(keepends=True)[-lines:])


for member in MEMBERS:
    lab.add_command(member)

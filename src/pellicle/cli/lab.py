# SPDX-License-Identifier: Apache-2.0
"""`pellicle lab`: a cluster of real nodes in network namespaces of this machine."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from pellicle.cli.options import lab_nodes, speaks_json
from pellicle.cli.printed import print_json, print_page
from pellicle.cli.trouble import Exit, Trouble

if TYPE_CHECKING:
    from pellicle.lab import LabState

Command = TypeVar("Command", bound=Callable[..., Any])


def node_argument(command: Command) -> Command:
    """NODE, a node of the lab."""
    return click.argument(
        "node", shell_complete=lambda _c, _p, text: [n for n in lab_nodes() if n.startswith(text)]
    )(command)


@contextmanager
def in_lab() -> Iterator[None]:
    """What the lab refuses is said in its own words; what was asked wrongly, as a usage error."""
    if os.geteuid() != 0:
        raise Trouble("the lab makes network namespaces and loads BPF programs.", "Run it as root.")
    from pellicle.lab import LabError

    try:
        yield
    except LabError as error:
        raise Trouble(str(error)) from error
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def progress(line: str) -> None:
    """One line for each step, where it disturbs nobody who reads stdout."""
    click.echo(click.style(f"  {line}", dim=True), err=True)


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
@click.option("--engine", default="bpf", show_default=True, help="What encrypts.")
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
      pellicle lab up --set drain_seconds=2
    """
    with in_lab():
        from pellicle.lab import up as make

        state = make(
            nodes,
            pods,
            engine=engine,
            encrypt=encrypt,
            mtu=mtu,
            settings=dict(map(_setting, settings)),
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
      pellicle lab exec n1/p1 ping -c 3 10.244.2.2
      pellicle lab exec n1 ip route show table 200
      pellicle lab exec wire tcpdump -ni n1
      pellicle lab exec n2/p1 bash
    """
    with in_lab():
        from pellicle.lab import exec_ as run

        code = run(where, command)
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

        heard = listen(write, filter_, seconds)
    total = sum(count.packets for count in heard.counts.values())
    click.echo(f"{total} packets heard", err=True)
    if heard.lost:
        click.echo(f"{heard.lost} more came too fast for this machine", err=True)


@lab.command("add-node")
def add_node() -> None:
    """One node more, with as many pods as the others.

    \b
    Example:
      pellicle lab add-node
    """
    with in_lab():
        from pellicle.lab import add_node as add

        click.echo(add(progress).name)


@lab.command("remove-node")
def remove_node() -> None:
    """Drain and remove the last node.

    \b
    Example:
      pellicle lab remove-node
    """
    with in_lab():
        from pellicle.lab import remove_node as remove

        click.echo(remove(progress).name)


@lab.command("add-pod")
@click.argument("where")
def add_pod(where: str) -> None:
    """One pod more on a node (n1), or exactly this one (n1/p7).

    \b
    Example:
      pellicle lab add-pod n1
    """
    with in_lab():
        from pellicle.lab import add_pod as add

        click.echo(add(where).name)


@lab.command("delete-pod")
@click.argument("pod")
def delete_pod(pod: str) -> None:
    """Unplug POD (n1/p1) and remove it.

    \b
    Example:
      pellicle lab delete-pod n1/p2
    """
    with in_lab():
        from pellicle.lab import delete_pod as delete

        delete(pod)


@lab.command("start-agent")
@node_argument
def start_agent(node: str) -> None:
    """Start the agent of NODE, unless it runs.

    Waits until it is ready.

    \b
    Example:
      pellicle lab start-agent n2
    """
    with in_lab():
        from pellicle.lab import start_agent as start

        start(node)


@lab.command("kill-agent")
@node_argument
def kill_agent(node: str) -> None:
    """Kill the agent of NODE with SIGKILL.

    Its pods and their encryption go on without it.

    \b
    Example:
      pellicle lab kill-agent n2
    """
    with in_lab():
        from pellicle.lab import kill_agent as kill

        kill(node)


@lab.command("restart-agent")
@node_argument
def restart_agent(node: str) -> None:
    """Stop the agent of NODE and start it again.

    It makes new keys, and no packet is lost.

    \b
    Example:
      pellicle lab restart-agent n2
    """
    with in_lab():
        from pellicle.lab import restart_agent as restart

        restart(node)


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
        from pellicle.lab.topology import node_named

        text = node_named(node).log.read_text(errors="replace")
    sys.stdout.writelines(text.splitlines(keepends=True)[-lines:])

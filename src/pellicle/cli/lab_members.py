# SPDX-License-Identifier: Apache-2.0
"""`pellicle lab add-node` and the like: single nodes, pods and agents of a lab that stands."""

from __future__ import annotations

from functools import partial

import click

from pellicle.cli.call import answers
from pellicle.cli.lab_access import as_meant, in_lab, known_node, node_argument, progress
from pellicle.cli.options import speaks_json
from pellicle.cli.printed import print_json_line, understood


@click.command("add-node")
def add_node() -> None:
    """One node more, with as many pods as the others.

    \b
    Example:
      pellicle lab add-node
    """
    with in_lab():
        from pellicle.lab import add_node as add

        click.echo(add(progress).name)


@click.command("remove-node")
def remove_node() -> None:
    """Drain and remove the last node.

    \b
    Example:
      pellicle lab remove-node
    """
    with in_lab():
        from pellicle.lab import remove_node as remove

        click.echo(remove(progress).name)


@click.command("add-pod")
@click.argument("where")
def add_pod(where: str) -> None:
    """One pod more on a node (n1), or exactly this one (n1/p7).

    \b
    Example:
      pellicle lab add-pod n1
    """
    with in_lab():
        from pellicle.lab import add_pod as add
        from pellicle.lab.topology import namespace_of

        with as_meant():
            namespace_of(where)
        click.echo(add(where).name)


@click.command("delete-pod")
@click.argument("pod")
def delete_pod(pod: str) -> None:
    """Unplug POD (n1/p1) and remove it.

    \b
    Example:
      pellicle lab delete-pod n1/p2
    """
    with in_lab():
        from pellicle.lab import delete_pod as delete
        from pellicle.lab.topology import pod_named

        with as_meant():
            pod_named(pod)
        delete(pod)


@click.command("start-agent")
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

        start(known_node(node).name)


@click.command("kill-agent")
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

        kill(known_node(node).name)


@click.command("restart-agent")
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

        restart(known_node(node).name)


@click.command("reboot")
@node_argument
def reboot(node: str) -> None:
    """NODE loses its power and boots again.

    Its pods, its datapath and its keys are gone; the pods are made anew.

    \b
    Example:
      pellicle lab reboot n2
    """
    with in_lab():
        from pellicle.lab import reboot as again

        again(known_node(node).name)


@click.command("rotate")
@speaks_json
def rotate(*, as_json: bool) -> None:
    """New keys between all nodes, now.

    It shows how many have moved, node by node, until all have. --json is a line for each step.

    \b
    Example:
      pellicle lab rotate
    """
    with in_lab():
        from concurrent.futures import ThreadPoolExecutor

        from pellicle.lab import status

        nodes = [node.name for node in status().nodes]
        with ThreadPoolExecutor(len(nodes) or 1) as all_at_once:
            list(all_at_once.map(partial(_rotate, as_json=as_json), nodes))


def _rotate(node: str, *, as_json: bool) -> None:
    from pellicle.lab.topology import node_named
    from pellicle.ui.answers import Rotation

    path = node_named(node).socket
    for answer in answers(path, "rotate", is_endless=True):
        if as_json:
            print_json_line({"node": node, **answer})
        else:
            click.echo(f"{node}  {understood(answer, Rotation, path).line()}")


MEMBERS = (
    add_node,
    remove_node,
    add_pod,
    delete_pod,
    start_agent,
    kill_agent,
    restart_agent,
    reboot,
    rotate,
)

# SPDX-License-Identifier: Apache-2.0
"""Several processes run one program on the same frames at the same time.

Processes, for threads would wait for each other's interpreter. Where a frame that another one was
first with is refused, refusing takes less time: the slower catches up, and they run in lockstep.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Sequence

from pellicle.kernel.bpf import Program

PROCESSES = 2
"""As many as the smallest machine has cores."""


def run_at_once(
    program: Program, frames: Sequence[bytes], *others: Sequence[bytes], repeat: int = 1
) -> list[list[tuple[int, bytes]]]:
    """For each process what came of each frame: the answer, and the frame as it was left.

    All get the same frames, or each its own; the kernel runs each frame `repeat` times.
    """
    lists = [frames, *others] if others else [frames] * PROCESSES
    context = multiprocessing.get_context("fork")  # descriptors of programs are inherited
    start = context.Barrier(len(lists))
    answers = context.SimpleQueue()

    def run(own: Sequence[bytes]) -> None:
        start.wait(30)
        done = [program.test_run(frame, repeat=repeat) for frame in own]
        answers.put([(each.retval, each.data) for each in done])

    children = [context.Process(target=run, args=(own,)) for own in lists]
    for child in children:
        child.start()
    results = [answers.get() for _ in children]
    for child in children:
        child.join()
    return results

# SPDX-License-Identifier: Apache-2.0
"""A node with all programs and the rows of a small cluster, for each file of tests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bpf.cluster import furnish
from tests.bpf.node import Node, loaded_node


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    with loaded_node(tmp_path_factory.mktemp("bpf")) as node:
        furnish(node)
        yield node

# SPDX-License-Identifier: Apache-2.0
"""What `make bench` runs; see benchmarks/bench.py.  Works from any directory."""

import importlib
import sys
from pathlib import Path

if __name__ == "__main__":
    # In place of this directory: modules here and tests' description of ESP go by full name.
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    sys.exit(importlib.import_module("benchmarks.bench").main())

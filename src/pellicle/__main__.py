# SPDX-License-Identifier: Apache-2.0
"""`python -m pellicle` is `pellicle`."""

from pellicle.cli import main

if __name__ == "__main__":
    main(prog_name="pellicle")

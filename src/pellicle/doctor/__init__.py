# SPDX-License-Identifier: Apache-2.0
"""Can this machine run Pellicle, and with which engine: tried out, not guessed.

    look.py ──▶ Machine (machine.py) ──▶ findings.py ──▶ Diagnosis

Only `look` touches the world, and leaves it as it was.
"""

# SPDX-License-Identifier: Apache-2.0
"""How: engines behind the door. Each has a row, a plan and a target; the decision is not theirs."""

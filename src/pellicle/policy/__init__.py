# SPDX-License-Identifier: Apache-2.0
"""From selectors to verdicts: which policies concern an address, and what they come to together."""

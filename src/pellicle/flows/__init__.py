# SPDX-License-Identifier: Apache-2.0
"""What came of every packet: reasons in words, events decoded, a bounded memory of flows. Pure."""

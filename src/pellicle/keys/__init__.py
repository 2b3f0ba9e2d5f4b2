# SPDX-License-Identifier: Apache-2.0
"""Keys: what nodes offer, what is derived from it, and when it is safe to use and to forget."""

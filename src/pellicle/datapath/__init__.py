# SPDX-License-Identifier: Apache-2.0
"""The packet's house seen from Python: one module for each thing in the kernel."""

# SPDX-License-Identifier: Apache-2.0
"""Pellicle: every packet that leaves a node encrypted, and an audit that says so."""

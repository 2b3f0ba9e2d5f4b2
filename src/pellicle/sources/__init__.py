# SPDX-License-Identifier: Apache-2.0
"""The front door: what the world says, made into facts. Nothing here decides anything."""

# SPDX-License-Identifier: Apache-2.0
"""Pure codecs: bytes to values and back. No input or output, no time, nothing of Pellicle."""

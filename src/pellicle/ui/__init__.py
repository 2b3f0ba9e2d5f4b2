# SPDX-License-Identifier: Apache-2.0
"""What a person sees of the agent's answers: tables that fit the terminal, colours that mean
something, sizes and times in human units. Answers in, renderables out; nothing here asks.
"""

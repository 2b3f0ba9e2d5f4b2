# SPDX-License-Identifier: Apache-2.0
"""Why the kernel's IPsec dropped packets, in words: the counters of /proc/net/xfrm_stat.

They count for the whole network namespace: tunnels of others on this node are in them, too.
A counter of a kernel newer than this list goes by its own name.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from pellicle.flows.reasons import Words

_PEER = "Compare the epochs on both nodes with `pellicle encrypt status`."
_BUG = "If it grows on a node without other tunnels, please report it."

WORDS: Final[Mapping[str, Words]] = MappingProxyType(
    {
        "XfrmInError": Words("other errors on the way in", _BUG),
        "XfrmInBufferError": Words("no memory on the way in", "The node is short of memory."),
        "XfrmInHdrError": Words("ESP header that does not parse", "A damaged or forged packet."),
        "XfrmInNoStates": Words(
            "ESP for which the kernel has no state",
            "Its SA was removed here, or it belongs to a tunnel that is not ours. " + _PEER,
        ),
        "XfrmInStateProtoError": Words(
            "ESP that does not authenticate, or a dummy packet",
            "Other keys at the other end, or a forged packet. " + _PEER,
        ),
        "XfrmInStateModeError": Words("ESP of another mode than tunnel", _BUG),
        "XfrmInStateSeqError": Words(
            "ESP seen before, or older than the replay window",
            "A few are packets that overtook each other by more than 1024; many are a replay.",
        ),
        "XfrmInStateExpired": Words("ESP under an expired state", "The peer moves to new keys."),
        "XfrmInStateMismatch": Words("inner packet that its state does not allow", _BUG),
        "XfrmInStateInvalid": Words("ESP under a state that is going", "The peer moves on."),
        "XfrmInTmplMismatch": Words("decrypted otherwise than a policy wants", _BUG),
        "XfrmInNoPols": Words(
            "decrypted, but no policy lets it in",
            "A policy was removed: it is put back, see `healed` in `pellicle status`.",
        ),
        "XfrmInPolBlock": Words("decrypted, but a policy blocks it", _BUG),
        "XfrmInPolError": Words("a policy on the way in failed", _BUG),
        "XfrmOutError": Words("other errors on the way out", _BUG),
        "XfrmOutBundleGenError": Words("no route to the peer", "Is the peer's node reachable?"),
        "XfrmOutBundleCheckError": Words("the route to the peer changed", "It is looked up anew."),
        "XfrmOutNoStates": Words(
            "to be encrypted, but the SA is gone",
            "Somebody removed it: new keys are agreed on, see `healed` in `pellicle status`.",
        ),
        "XfrmOutStateProtoError": Words("encryption failed", _BUG),
        "XfrmOutStateModeError": Words("encapsulation failed", _BUG),
        "XfrmOutStateSeqError": Words("sequence numbers are used up", "New keys follow."),
        "XfrmOutStateExpired": Words("to be encrypted under an expired state", "New keys follow."),
        "XfrmOutPolBlock": Words(
            "to be encrypted, but no policy says how",
            "The last policy of all blocks it: the peer's are being put, or were removed.",
        ),
        "XfrmOutPolDead": Words("its policy was just removed", "It is put back."),
        "XfrmOutPolError": Words("a policy on the way out failed", _BUG),
        "XfrmFwdHdrError": Words("forwarded packet that does not parse", "A damaged packet."),
        "XfrmOutStateInvalid": Words("to be encrypted under a state that is going", "It is over."),
        "XfrmAcquireError": Words("a state that was asked for did not come", "Not one of ours."),
    }
)


def words_of(counter: str) -> Words:
    """What a counter means."""
    return WORDS.get(counter, Words("a reason that this version does not know", _BUG))

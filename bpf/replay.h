// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* Extended sequence numbers (RFC 4303 §2.2.1, Appendix A) and the anti-replay window (§3.4.3).
 *
 *     ... top-1024 | top-1023 ................. top | top+1 ...
 *       too old    |   the window: one bit each     |  new
 *
 * The window is a ring of 2048 bits, bit s % 2048 for number s.  When top moves on, the 64-bit
 * words it enters are cleared; the ring is so long that none of those is still in the window.
 */
#pragma once
#include "tables.h"

/* The whole number that a packet's low half stands for: in the window, or the next one right of it,
 * RFC 4303 Appendix A2.1.  A number before the very first comes out near 2^64: replay_check
 * refuses it.
 */
static __always_inline __u64 sequence_infer(__u64 top, __u32 low)
{
	__u32 top_low = top, high = top >> 32;
	__u32 bottom = top_low - REPLAY_WINDOW + 1; /* of the window, modulo 2^32 */

	if (top_low >= REPLAY_WINDOW - 1) {
		if (low < bottom)
			high++;
	} else if (low >= bottom) {
		high--;
	}
	return (__u64)high << 32 | low;
}

/* A number left of the window reads as one almost 2^32 right of it, and then cannot authenticate:
 * its high half was another.  So this is what to call a failure in the farther half of that way.
 */
static __always_inline int sequence_is_old(__u64 top, __u64 sequence)
{
	return sequence >> 32 && (sequence - top) >> 31;
}

/* REASON_NONE, or why the number is refused.  Zero is never sent (§2.2), as if seen before; and no
 * jump forward is larger than the 2^32 that the low half can tell apart.
 */
static __always_inline __u32 replay_check(const struct sa_in *sa, __u64 sequence)
{
	__u64 top = sa->top;

	if (sequence > top)
		return (sequence - top) >> 32 ? DROP_TOO_OLD : REASON_NONE;
	if (top - sequence >= REPLAY_WINDOW)
		return DROP_TOO_OLD;
	if (!sequence || sa->window[sequence / 64 % REPLAY_WORDS] >> sequence % 64 & 1)
		return DROP_REPLAYED;
	return REASON_NONE;
}

/* The number is seen: only after replay_check, both under the SA's lock. */
static __always_inline void replay_commit(struct sa_in *sa, __u64 sequence)
{
	__u64 word = sequence / 64, entered = word - sa->top / 64;

	if (sequence > sa->top) {
#pragma clang loop unroll(disable)
		for (__u32 i = 0; i < REPLAY_WORDS && i < entered; i++)
			sa->window[(word - i) % REPLAY_WORDS] = 0;
		sa->top = sequence;
	}
	sa->window[word % REPLAY_WORDS] |= 1ULL << sequence % 64;
}

/* Accepts an authentic number once, whichever core is first. */
static __always_inline __u32 replay_accept(struct sa_in *sa, __u64 sequence)
{
	__u32 reason;

	bpf_spin_lock(&sa->lock);
	reason = replay_check(sa, sequence);
	if (!reason)
		replay_commit(sa, sequence);
	bpf_spin_unlock(&sa->lock);
	return reason;
}

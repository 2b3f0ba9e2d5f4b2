// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* skb->mark, seen by nobody but this node:
 *
 *     31                            16 15 14 13  12 11      8  7  6     2 1    0
 *    +--------------------------------+-----+------+---------+---+-------+------+
 *    |    slot: names a pair here     |  0  |  SA  | 0xe/0xd | S |   0   | ECN  |
 *    +--------------------------------+-----+------+---------+---+-------+------+
 *
 * From a pod, or from the overlay's device, it is exactly 0xe00: routed by table 200 to the door.  The
 * rest is for the kernel's IPsec, which chooses policies and states by it, and makes it 0xc… with what
 * it has encrypted.  What leaves the door is exactly 0xc00.  S: the kernel's state is shared by many
 * pairs; the SA is the state's number then, and the slot, which the state does not look at, still names
 * the pair.  Bits 14 and 15 are kube-proxy's.  An overlay packet that may come out of the overlay's
 * device is exactly 4.
 */
#pragma once

#define MARK_ENCRYPT 0xe00	/* & MARK_MASK: to be encrypted */
#define MARK_DECRYPT 0xd00	/* & MARK_MASK: ESP that is the kernel's to open, and what was in it */
#define MARK_OUT 0xc00		/* & MARK_MASK: leaves as it is, by ordinary routes */
#define MARK_MASK 0xf00
#define MARK_SLOT_SHIFT 16
#define MARK_SA_SHIFT 12
#define MARK_SHARED 0x80
#define MARK_OVERLAY 4		/* an overlay packet from the wire that has been judged */
#define MARK_ECN 3		/* of the inner packet on the way out, of the outer one on the way in */

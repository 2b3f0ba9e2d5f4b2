// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* Why a packet's journey here ended, or passed a border.  Python has the words (flows/reasons.py). */
#pragma once

enum reason {
	REASON_NONE = 0,
	/* forwarded in the clear */
	CLEAR_LOCAL,		/* both ends on this node */
	CLEAR_WORLD,		/* not a cluster address: Pellicle does not encrypt it */
	CLEAR_DISABLED,		/* encryption is off */
	CLEAR_LINK,		/* ARP, neighbour discovery, link-local: never leaves the link */
	CLEAR_EXEMPT,		/* the configuration or a policy says that it may */
	/* forwarded encrypted */
	SEALED,
	OPENED,
	/* the agents' own */
	PROBE_SENT,
	PROBE_RECEIVED,
	ESP_DUMMY_RECEIVED,	/* RFC 4303 §2.6: says nothing, but its keys are right */
	PATH_MTU_RECEIVED,	/* a router's word on our ESP */
	/* dropped: everything from here on */
	DROP_FIRST,
	DROP_UNKNOWN_PEER = DROP_FIRST,	/* inside the cluster's CIDRs, not in the ipcache */
	DROP_NO_KEY,		/* the peer is known, no SA stands for it */
	DROP_SA_EXPIRED,	/* by age or by count */
	DROP_SEAL_FAILED,	/* a packet that the engine cannot seal */
	DROP_TOO_BIG,		/* longer than the engine can carry; the route MTU should have said so */
	DROP_SPOOFED_POD,	/* a pod sent with an address that is not its own */
	DROP_MALFORMED,		/* headers that do not parse */
	DROP_NOT_IP,		/* what a pod or the stack sent is neither IP nor ARP */
	DROP_UNKNOWN_SPI,	/* ESP for which no SA stands */
	DROP_ESP_FRAGMENT,	/* outer fragments: our peers set DF */
	DROP_ESP_MALFORMED,	/* too short, unaligned, impossible padding */
	DROP_REPLAYED,		/* sequence number seen before */
	DROP_TOO_OLD,		/* left of the replay window */
	DROP_AUTH_FAILED,	/* the tag does not verify */
	DROP_SPOOFED_SOURCE,	/* the inner source does not belong to the SA's node */
	DROP_NO_ENDPOINT,	/* opened, but no such pod here */
	DROP_TTL_EXCEEDED,
	DROP_CLEAR_FROM_CLUSTER, /* cleartext from the wire with a cluster source */
	DROP_CLEAR_TO_CLUSTER,	/* the last door: cleartext about to leave for a cluster address */
	DROP_CONGESTED_ECN,	/* RFC 6040 §4.2: outer CE on an inner packet that is not ECN-capable */
	DROP_POD_ESP,		/* a pod speaking ESP of its own to a node of the cluster */
	DROP_WRONG_DOOR,	/* one engine's, at the other's device: a route is on its way */
	DROP_UNKNOWN_SLOT,	/* sealed by a shared state, for a pair that is gone */
	DROP_FORGED_OVERLAY,	/* to the overlay's port of a node, but not from a node's overlay */
	DROP_WRONG_IDENTITY,	/* the overlay's header names another identity than the ipcache */
	DROP_WRONG_ROUTING,	/* for a pod, but not by the overlay that this node is set to */
	REASON_COUNT,
};

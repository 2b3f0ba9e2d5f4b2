// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* The contract with Python: every map, row, event, enum and configuration word.
 *
 * Python reads these layouts from the object's BTF and never declares them again.
 * An address is always 16 bytes in network order; IPv4 is written ::ffff:a.b.c.d (RFC 4291 §2.5.5.2),
 * so that one key serves both families.  Times are CLOCK_BOOTTIME nanoseconds.
 */
#pragma once
#include "kernel.h"
#include "chacha20poly1305.h"
#include "mark.h"
#include "reason.h"

#define SAS_PER_PAIR 4		/* SAs per node pair and direction, chosen by flow hash; a power of two */
#define REPLAY_WINDOW 1024	/* packets, RFC 4303 §3.4.3 */
#define REPLAY_WORDS 32		/* ring of 2048 bits: the window plus room to advance without shifting */
#define EVENTS_SIZE (1 << 20)	/* bytes of the ring buffer */
#define EVENTS_CHEAP (EVENTS_SIZE / 16 * 15) /* of them for events that anybody can cause */
#define EVENTS_WAITING (EVENTS_SIZE / 8) /* as many bytes of them wake the agent */
#define IDENTITY_REMOTE_NODE 6	/* of nodes, to others */
#define PROBE_PROTOCOL 59	/* of the agents' probes: no next header, RFC 8200 §4.7 */

struct addr {
	union {
		__u8 bytes[16];
		__be32 words[4];
		__u64 halves[2];
	};
};

enum hook { HOOK_FROM_POD = 1, HOOK_DOOR, HOOK_TO_NET, HOOK_FROM_NET };

/* --- configuration: set once at load ---------------------------------------------------------- */
struct config {
	__u32 encrypt;		/* 0: everything passes in the clear and is reported so */
	__u32 nodes;		/* also what nodes say to each other */
	__u32 monitor;		/* what is dropped for being clear passes, and is reported */
	__u32 uplink_ifindex;
	__u32 flow_interval_ms;	/* a long flow is reported again after this */
	__be16 overlay_port;	/* UDP; 0: pods are routed directly */
	__u8 overlay_first;	/* first byte of the overlay's header: what VXLAN or Geneve want there */
	__u8 pad;
	struct addr self4;	/* this node's outer addresses; zero: none in that family */
	struct addr self6;
	__u64 seal;		/* of to_net on what it let pass: drawn at load, nobody else's */
};
extern const volatile struct config config;	/* defined once, in pellicle.bpf.c */

/* --- who: address -> identity and node --------------------------------------------------------- */
enum peer_flags { PEER_LOCAL = 1, PEER_NODE = 2 /* the address of a node, not of a pod */ };
struct peer {
	__u32 identity;
	__u32 flags;
	struct addr node;	/* the primary address of the node that holds it */
	__u64 group;		/* for encryption policies; 0: none names it */
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1048576);
	__type(key, struct addr);
	__type(value, struct peer);
} ipcache SEC(".maps");

/* the cluster's CIDRs: an address in here that the ipcache does not know is never "the world" */
enum cidr_flags { CIDR_NODE = 1 /* where nodes are, and not pods: one that the ipcache has lost, or has
				 * never known */ };
struct cidr {
	__u32 prefixlen;	/* of the 128-bit form: IPv4 /16 is 112 */
	struct addr addr;	/* right behind it: the trie would compare padding too */
} __attribute__((packed));
struct cidr_row {
	__u32 flags;
	__u32 pad;
	__u64 group;		/* of addresses that the ipcache does not know */
};
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct cidr);
	__type(value, struct cidr_row);
} cluster_cidrs SEC(".maps");

/* --- pods of this node: address -> device ------------------------------------------------------- */
struct endpoint {
	__u32 ifindex;		/* host end of the veth pair */
	__u32 identity;
	__u8 pod_mac[6];
	__u8 host_mac[6];
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4096);
	__type(key, struct addr);
	__type(value, struct endpoint);
} endpoints SEC(".maps");

/* --- whether, and with whose keys: encryption policies, resolved for each two groups -------------- */
enum policy_action { POLICY_EXEMPT = 1, POLICY_ENCRYPT, POLICY_OWN_KEYS /* the stricter, the higher */ };
struct policy { __u32 rule; /* names it in reports; 0: none says so */ __u32 action; };
struct policy_key { __u64 groups[2]; /* the lesser first: answers go like what they answer */ };
struct policy_row {
	struct policy rest;
	struct policy fragments;	/* they have no ports */
	__u64 ports;			/* a list of ports that are treated apart; 0: none */
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 1048576);
	__type(key, struct policy_key);
	__type(value, struct policy_row);
} policies SEC(".maps");

struct policy_port_key {
	__u64 ports;
	__be16 port;		/* of either end */
	__u8 protocol;
	__u8 pad[5];
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 262144);
	__type(key, struct policy_port_key);
	__type(value, struct policy);
} policy_ports SEC(".maps");

/* --- how: the encryption table -> a pair of offers, that is a set of SAs ------------------------ */
enum engine { ENGINE_BPF = 1, ENGINE_XFRM };
enum cipher { CIPHER_CHACHA20_POLY1305 = 1, CIPHER_AES_128_GCM, CIPHER_AES_256_GCM };
struct encrypt_key {
	__u32 context;		/* 0: all traffic, else the policy that wants keys of its own */
	__u32 pad;
	struct addr node;	/* the peer's primary address */
};
struct encrypt_row {
	__u64 pair;		/* fingerprint of the two offers: names the SAs in sa_out */
	__u32 engine;		/* enum engine */
	__u32 sa_mask;		/* of the flow hash: which of the pair's SAs */
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 65536);
	__type(key, struct encrypt_key);
	__type(value, struct encrypt_row);
} encrypt SEC(".maps");

/* Of an SA of the kernel's the row only says what it is: key, salt and counts are in its xfrm state;
 * where that is shared, packets and bytes are counted here.
 */
struct sa_out_key { __u64 pair; __u32 number; __u32 pad; };
struct sa_out {
	__u64 sequence;		/* last one sent; only ever counted up, only by the datapath */
	__u64 sequence_limit;	/* at this one the SA is spent */
	__u64 expires;		/* boot time in ns; 0: never */
	__u64 packets;
	__u64 bytes;		/* inner */
	__u32 key[8];
	__u32 salt;
	__be32 spi;
	struct addr source;	/* outer */
	struct addr destination; /* outer */
	struct addr node;	/* the peer's primary address */
	__u32 local_epoch;
	__u32 peer_epoch;
	__u32 engine;		/* enum engine */
	__u32 mark;		/* slot and number: of packets that the kernel encrypts with this SA */
	__u32 cipher;		/* enum cipher */
	__u32 context;		/* as in encrypt_key */
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct sa_out_key);
	__type(value, struct sa_out);
} sa_out SEC(".maps");

struct sa_in_key { struct addr source; struct addr destination; __be32 spi; __u32 pad; };
struct sa_in {
	struct bpf_spin_lock lock; /* guards top and window */
	__u32 number;
	__u64 top;		/* highest sequence number accepted */
	__u64 window[REPLAY_WORDS]; /* bit s % 2048 */
	__u64 pair;
	__u64 expires;
	__u64 packets;		/* authenticated and fresh */
	__u64 bytes;		/* inner */
	__u64 first_seen;	/* when the first packet authenticated: the peer has these keys */
	__u64 auth_failed;
	__u64 replayed;		/* replayed or too old */
	__u32 key[8];
	__u32 salt;
	__u32 engine;		/* enum engine */
	struct addr node;	/* the peer's primary address: inner sources must belong to it */
	__u32 local_epoch;
	__u32 peer_epoch;
	__u32 mark;		/* slot: of ESP that the kernel decrypts with this SA */
	__u32 cipher;		/* enum cipher */
	__u32 context;		/* as in encrypt_key */
	__u32 pad;
};
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 131072);
	__type(key, struct sa_in_key);
	__type(value, struct sa_in);
} sa_in SEC(".maps");

/* --- SAs that share a state of the kernel's: by the slot in a mark, whose packet it is ------------ */
struct sharer_key { __u32 slot; };
struct sharer { struct addr outer; /* the peer's */ };
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct sharer_key);
	__type(value, struct sharer);
} sharers SEC(".maps");

/* --- SAs that somebody else has made in this node's kernel: their ESP, both ways, is left to them -- */
struct other_key { struct addr destination; __be32 spi; __u32 pad; };
struct other_row { __u32 flags; };
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct other_key);
	__type(value, struct other_row);
} others SEC(".maps");

/* --- what nodes may say to each other in the clear ------------------------------------------------ */
struct exempt_key {
	__be16 port;		/* of either end; 0: any */
	__u8 protocol;
	__u8 pad;
};
struct exempt_row { __u32 rule; /* names it in reports; never 0 */ };
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 16384);
	__type(key, struct exempt_key);
	__type(value, struct exempt_row);
} exempt SEC(".maps");

/* --- where the overlay's packets for a node go ------------------------------------------------------ */
struct remote { struct addr outer; };
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, 65536);
	__type(key, struct addr); /* the peer's primary address */
	__type(value, struct remote);
} remotes SEC(".maps");

/* --- the door's device, which is made anew when somebody removes it ------------------------------ */
struct doors { __u32 host; /* ifindex of pellicle_host */ };
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct doors);
} doors SEC(".maps");

/* --- what agents ask each other: an IP packet of PROBE_PROTOCOL from node to node, carrying this ---
 *
 * It is sealed like any other, but by the SA that it names, whatever the encryption table says.
 */
enum probe_kind { PROBE_ASK = 1, PROBE_ANSWER = 2 };
struct probe {
	__be64 pair;
	__be32 number;
	__be32 kind;
} __attribute__((packed));

/* --- what came of it: counters, flows, events ---------------------------------------------------- */
struct count { __u64 packets; __u64 bytes; };
/* by reason; those that monitor mode has let through are REASON_COUNT behind */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 2 * REASON_COUNT);
	__type(key, __u32);
	__type(value, struct count);
} counts SEC(".maps");

struct flow_key {
	struct addr source;
	struct addr destination;
	__be16 source_port;	/* ICMP: type and code in source_port, identifier in destination_port */
	__be16 destination_port;
	__u8 protocol;
	__u8 hook;		/* enum hook */
	__u8 reason;		/* enum reason */
	__u8 audited;		/* let through by monitor mode */
};
struct flow_row {
	__u64 packets;		/* since first; cumulative, so a lost event loses no count */
	__u64 bytes;
	__u64 first;
	__u64 last;
	__u64 reported;
	__u64 pair;
	__u32 source_identity;
	__u32 destination_identity;
	__be32 spi;
	__u32 epoch;		/* the sender's */
	__u32 engine;		/* enum engine; 0: none has touched it */
	__u32 rule;		/* that has let it pass; 0: none */
};
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 65536);
	__type(key, struct flow_key);
	__type(value, struct flow_row);
} flows SEC(".maps");

enum event_kind { EVENT_FLOW = 1, EVENT_SA_CONFIRMED, EVENT_PROBE, EVENT_PMTU };
struct event {
	__u32 kind;		/* enum event_kind */
	__u32 number;		/* EVENT_SA_CONFIRMED, EVENT_PROBE: the SA's; EVENT_PMTU: the MTU */
	__u64 pair;		/* EVENT_SA_CONFIRMED, EVENT_PROBE */
	__u32 probe;		/* EVENT_PROBE: enum probe_kind */
	__u32 pad;
	struct flow_key key;	/* EVENT_FLOW; EVENT_PMTU: outer source and destination */
	struct flow_row row;	/* EVENT_FLOW */
};
struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENTS_SIZE);
} events SEC(".maps");
/* how many events the ring buffer had no room for */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} lost_events SEC(".maps");

/* #defines that Python needs: BTF keeps only what a type or a variable mentions */
enum exported {
	EXPORT_SAS_PER_PAIR = SAS_PER_PAIR,
	EXPORT_MARK_ENCRYPT = MARK_ENCRYPT,
	EXPORT_MARK_MASK = MARK_MASK,
	EXPORT_MARK_DECRYPT = MARK_DECRYPT,
	EXPORT_MARK_OUT = MARK_OUT,
	EXPORT_MARK_SLOT_SHIFT = MARK_SLOT_SHIFT,
	EXPORT_MARK_SA_SHIFT = MARK_SA_SHIFT,
	EXPORT_MARK_SHARED = MARK_SHARED,
	EXPORT_PROBE_PROTOCOL = PROBE_PROTOCOL,
	EXPORT_IDENTITY_REMOTE_NODE = IDENTITY_REMOTE_NODE,
	EXPORT_REPLAY_WINDOW = REPLAY_WINDOW,
	EXPORT_LONGEST = CCP_MAX - 2, /* the longest packet that the engine seals */
};
struct exported_enums { enum exported exported; enum reason reason; enum hook hook; enum peer_flags peer_flags;
	enum cidr_flags cidr_flags;
	enum probe_kind probe_kind; enum event_kind event_kind; enum engine engine;
	enum cipher cipher; enum policy_action policy_action; };
struct exported_rows { struct probe probe; struct event event; };

// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* The little of the kernel's BPF interface that the programs here use.
 *
 * Types come from the UAPI header <linux/bpf.h> that the compiler's own wheel carries; this file
 * adds what that header only numbers: sections, map definitions as BTF spells them, and the helper
 * functions (enum bpf_func_id). Nothing here depends on one kernel version.
 */
#ifndef PELLICLE_KERNEL_H
#define PELLICLE_KERNEL_H

#include <linux/bpf.h>
#include <linux/types.h>

#define AF_INET 2
#define AF_INET6 10

#define SEC(name) __attribute__((section(name), used))
#define __noinline __attribute__((noinline))
#undef __always_inline /* <linux/stddef.h> has a weaker one */
#define __always_inline inline __attribute__((always_inline))

/* A map is a struct in SEC(".maps"); libbpf reads its settings from the types of its members. */
#define __uint(name, value) int(*name)[value]
#define __type(name, type) typeof(type) *name
#define __array(name, type) typeof(type) *name[]

/* An integer that the compiler can know nothing about, for bounds that the verifier must see. */
#define opaque(value) asm volatile("" : "+r"(value))

static void *(*const bpf_map_lookup_elem)(void *map, const void *key) = (void *)1;
static long (*const bpf_map_update_elem)(void *map, const void *key, const void *value,
					 __u64 flags) = (void *)2;
static long (*const bpf_map_delete_elem)(void *map, const void *key) = (void *)3;
static __u64 (*const bpf_ktime_get_ns)(void) = (void *)5;
static __u32 (*const bpf_get_prandom_u32)(void) = (void *)7;
static __u32 (*const bpf_get_smp_processor_id)(void) = (void *)8;
static long (*const bpf_skb_store_bytes)(struct __sk_buff *skb, __u32 offset, const void *from,
					 __u32 len, __u64 flags) = (void *)9;
static long (*const bpf_l3_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from,
					 __u64 to, __u64 size) = (void *)10;
static long (*const bpf_l4_csum_replace)(struct __sk_buff *skb, __u32 offset, __u64 from,
					 __u64 to, __u64 flags) = (void *)11;
static long (*const bpf_skb_vlan_push)(struct __sk_buff *skb, __be16 proto,
					 __u16 tci) = (void *)18;
static long (*const bpf_skb_vlan_pop)(struct __sk_buff *skb) = (void *)19;
static long (*const bpf_skb_get_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key,
					    __u32 size, __u64 flags) = (void *)20;
static long (*const bpf_skb_set_tunnel_key)(struct __sk_buff *skb, struct bpf_tunnel_key *key,
					    __u32 size, __u64 flags) = (void *)21;
static long (*const bpf_redirect)(__u32 ifindex, __u64 flags) = (void *)23;
static long (*const bpf_skb_load_bytes)(const void *skb, __u32 offset, void *to,
					__u32 len) = (void *)26;
static __s64 (*const bpf_csum_diff)(const __be32 *from, __u32 from_size, const __be32 *to,
				    __u32 to_size, __wsum seed) = (void *)28;
static long (*const bpf_skb_change_proto)(struct __sk_buff *skb, __be16 proto,
					  __u64 flags) = (void *)31;
static long (*const bpf_skb_change_tail)(struct __sk_buff *skb, __u32 len,
					 __u64 flags) = (void *)38;
static long (*const bpf_skb_pull_data)(struct __sk_buff *skb, __u32 len) = (void *)39;
static long (*const bpf_skb_change_head)(struct __sk_buff *skb, __u32 len,
					 __u64 flags) = (void *)43;
static long (*const bpf_skb_adjust_room)(struct __sk_buff *skb, __s32 len_diff, __u32 mode,
					 __u64 flags) = (void *)50;
static long (*const bpf_skb_get_xfrm_state)(struct __sk_buff *skb, __u32 index,
					    struct bpf_xfrm_state *state, __u32 size,
					    __u64 flags) = (void *)66;
static long (*const bpf_fib_lookup)(void *ctx, struct bpf_fib_lookup *params, int plen,
				    __u32 flags) = (void *)69;
static long (*const bpf_spin_lock)(struct bpf_spin_lock *lock) = (void *)93;
static long (*const bpf_spin_unlock)(struct bpf_spin_lock *lock) = (void *)94;
static __u64 (*const bpf_ktime_get_boot_ns)(void) = (void *)125;
static long (*const bpf_ringbuf_output)(void *ringbuf, void *data, __u64 size,
					__u64 flags) = (void *)130;
static void *(*const bpf_ringbuf_reserve)(void *ringbuf, __u64 size, __u64 flags) = (void *)131;
static void (*const bpf_ringbuf_submit)(void *data, __u64 flags) = (void *)132;
static void (*const bpf_ringbuf_discard)(void *data, __u64 flags) = (void *)133;
static __u64 (*const bpf_ringbuf_query)(void *ringbuf, __u64 flags) = (void *)134;
static long (*const bpf_csum_level)(struct __sk_buff *skb, __u64 level) = (void *)135;
static long (*const bpf_redirect_neigh)(__u32 ifindex, struct bpf_redir_neigh *params, int plen,
					__u64 flags) = (void *)152;
static long (*const bpf_redirect_peer)(__u32 ifindex, __u64 flags) = (void *)155;
static long (*const bpf_check_mtu)(void *ctx, __u32 ifindex, __u32 *mtu_len, __s32 len_diff,
				   __u64 flags) = (void *)163;
static long (*const bpf_loop)(__u32 iterations, void *callback, void *context,
			      __u64 flags) = (void *)181;

#endif

// SPDX-License-Identifier: (BSD-2-Clause OR GPL-2.0-only)
/* A network card that says of every packet: I have checked its sum, it is right. */
#include <linux/pkt_cls.h>

#include "kernel.h"

SEC("tc")
int vouch(struct __sk_buff *skb)
{
	bpf_csum_level(skb, BPF_CSUM_LEVEL_INC);
	return TC_ACT_UNSPEC;
}

char _license[] SEC("license") = "Dual BSD/GPL";

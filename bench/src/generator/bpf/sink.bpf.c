/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The far end of the generator: counts its packets, in VXLAN or not, and drops them. All others
 * go on to the kernel, which answers ARP, say.
 *
 * `podway_sink` runs behind the driver (tcx), on packets as they are: native XDP would strip
 * offloads from the other end of a veth, and either kind of XDP would copy most packets first.
 * `podway_drop` is the cheapest end there is, for measuring the generator alone.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "shared.h"

const volatile __u16 vxlan_port;

struct totals {
	__u64 packets;      /* those that a super-frame holds, each */
	__u64 frames;       /* as they arrived, a super-frame being one */
	__u64 bytes;        /* of the frames, as they arrived */
	__u64 super_frames; /* frames that hold several packets: no wire carries them */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct totals);
} totals SEC(".maps");

/* Frames by flow; a super-frame counts for the flow of its first packet. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_FLOWS);
	__type(key, __u32);
	__type(value, __u64);
} flows SEC(".maps");

struct headers {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct udphdr udp;
} __attribute__((packed));

struct mark {
	__be32 magic;
	__be32 flow;
};

SEC("tc")
int podway_sink(struct __sk_buff *skb)
{
	__u32 zero = 0, flow, offset = sizeof(struct headers);
	struct headers headers;
	struct totals *total;
	struct mark mark;
	__u64 *count;

	if (bpf_skb_load_bytes(skb, 0, &headers, sizeof(headers)))
		return TC_ACT_UNSPEC;
	if (headers.ethernet.h_proto != bpf_htons(ETH_P_IP) || headers.ip.ihl != 5 ||
	    headers.ip.protocol != IPPROTO_UDP)
		return TC_ACT_UNSPEC;
	if (headers.udp.dest == bpf_htons(vxlan_port))
		offset += OUTER_LENGTH;
	if (bpf_skb_load_bytes(skb, offset, &mark, sizeof(mark)) ||
	    mark.magic != bpf_htonl(MAGIC))
		return TC_ACT_UNSPEC;

	total = bpf_map_lookup_elem(&totals, &zero);
	if (total) {
		total->packets += skb->gso_segs > 1 ? skb->gso_segs : 1;
		total->frames++;
		total->bytes += skb->len;
		total->super_frames += skb->gso_segs > 1;
	}
	flow = bpf_ntohl(mark.flow);
	count = bpf_map_lookup_elem(&flows, &flow);
	if (count)
		(*count)++;
	return TC_ACT_SHOT;
}

SEC("xdp")
int podway_drop(struct xdp_md *ctx)
{
	return XDP_DROP;
}

char _license[] SEC("license") = "Apache-2.0";

/* SPDX-License-Identifier: Apache-2.0 */
/*
 * The packet generator: run again and again through BPF_PROG_RUN with live frames, it sends a frame
 * out of an interface whenever one is due.
 *
 * Paces itself, since the kernel runs batches back to back: a run before the next packet is due
 * drops the frame. A generator that was kept from running does not make up for it by a burst: the
 * schedule starts anew, and the histogram and the count of what was sent tell.
 *
 * The kernel recycles the frames, changed by whoever had them. Headers are written each time;
 * the payload after the flow is nobody's to change.
 */
#include <linux/bpf.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "shared.h"

/* Offsets in an Ethernet frame with IPv4 without options and UDP. */
#define IP_CHECKSUM 24
#define IP_DESTINATION_LOW 32
#define UDP_SOURCE 34
#define UDP_CHECKSUM 40
#define FLOW 46

/* Dynamic ports, RFC 6335; VXLAN senders choose from them (RFC 7348, section 5). */
#define FIRST_DYNAMIC_PORT 49152

/* Header bytes that are written each time, in words of eight. */
#define PLAIN_WORDS ((INNER_LENGTH + 7) / 8)
#define TUNNEL_WORDS ((OUTER_LENGTH + INNER_LENGTH + 7) / 8)

/* Constants of one run. Sums are those of 16-bit words in host byte order, before folding, with
 * what differs from packet to packet left out. */
struct plan {
	__u64 interval_ns; /* 0: as fast as it goes */
	__u64 limit_ns;    /* from the first packet on */
	__u32 interface;
	__u32 flows;
	__u32 destinations; /* addresses, from that in the headers on, used in turn by flow */
	__u32 first_port;   /* UDP source port of flow 0 */
	__u32 ip_sum;
	__u32 udp_sum;
	__u32 outer_udp_sum;
	__u32 tunnel; /* 1: in VXLAN */
	__u32 burst;  /* packets that are due at once: 1, but for tests of the checks */
	__u32 lose;   /* every how manieth packet is counted and not sent: 0, but for the same tests */
};

const volatile struct plan plan;

/* One CPU at a time runs the program, so plain variables do. */
__u64 headers[TUNNEL_WORDS];
__u64 intervals[INTERVAL_BINS];
__u64 sent;
__u64 first_ns;
__u64 last_ns;
__u64 due_ns;
__u32 flow;
__u32 in_burst;
__u32 until_lost;

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return ~sum;
}

/* RFC 768: a computed zero is sent as all ones. */
static __always_inline __u16 fold_udp(__u32 sum)
{
	__u16 checksum = fold(sum);

	return checksum ? checksum : 0xffff;
}

static __always_inline bool is_due(__u64 now)
{
	if (!plan.interval_ns)
		return true;
	if (now < due_ns)
		return false;
	if (++in_burst < plan.burst)
		return true;
	in_burst = 0;
	due_ns += plan.interval_ns * plan.burst;
	/* Too late for the next one as well: start anew from here. */
	if (due_ns < now)
		due_ns = now + plan.interval_ns;
	return true;
}

static __always_inline void record(__u64 interval)
{
	__u64 bin = plan.interval_ns ? interval * BINS_PER_TARGET / plan.interval_ns : 0;

	intervals[bin < INTERVAL_BINS ? bin : INTERVAL_BINS - 1]++;
}

static __always_inline void put16(void *at, __u16 value)
{
	*(__be16 *)at = bpf_htons(value);
}

SEC("xdp")
int podway_generate(struct xdp_md *ctx)
{
	void *data = (void *)(long)ctx->data;
	void *data_end = (void *)(long)ctx->data_end;
	__u32 words = plan.tunnel ? TUNNEL_WORDS : PLAIN_WORDS;
	__u64 now = bpf_ktime_get_ns();
	__u32 step, port, ip_checksum, udp_checksum;
	void *inner = data;

	if (data + words * 8 > data_end)
		return XDP_ABORTED;
	if (!first_ns) {
		first_ns = now;
		due_ns = now;
	}
	if (now - first_ns >= plan.limit_ns || !is_due(now))
		return XDP_DROP;

	if (sent)
		record(now - last_ns);
	last_ns = now;
	sent++;

	if (++flow >= plan.flows)
		flow = 0;
	if (plan.lose && ++until_lost >= plan.lose) {
		until_lost = 0;
		return XDP_DROP;
	}

	for (int i = 0; i < TUNNEL_WORDS; i++) {
		if (i == PLAIN_WORDS && !plan.tunnel)
			break;
		((__u64 *)data)[i] = headers[i];
	}
	if (plan.tunnel)
		inner += OUTER_LENGTH;

	step = plan.destinations > 1 ? flow % plan.destinations : 0;
	port = plan.first_port + flow;
	ip_checksum = fold(plan.ip_sum + step);
	udp_checksum = fold_udp(plan.udp_sum + step + port + flow);
	put16(inner + IP_CHECKSUM, ip_checksum);
	put16(inner + IP_DESTINATION_LOW,
	      bpf_ntohs(*(__be16 *)(inner + IP_DESTINATION_LOW)) + step);
	put16(inner + UDP_SOURCE, port);
	put16(inner + UDP_CHECKSUM, udp_checksum);
	/* Fewer than 2^16 flows: the upper half stays zero. */
	put16(inner + FLOW + 2, flow);

	if (plan.tunnel) {
		/* A function of the flow alone, spread by Knuth's multiplicative hash. */
		__u32 outer_port = FIRST_DYNAMIC_PORT + ((flow * 2654435761U) >> 18);
		__u32 sum = plan.outer_udp_sum + outer_port + ip_checksum + step + port +
			    udp_checksum + flow;

		put16(data + UDP_SOURCE, outer_port);
		put16(data + UDP_CHECKSUM, fold_udp(sum));
	}
	return bpf_redirect(plan.interface, 0);
}

char _license[] SEC("license") = "Apache-2.0";

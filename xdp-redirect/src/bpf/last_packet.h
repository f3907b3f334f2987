/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The last packet of each cause, for people who ask what it was.
 *
 * Only what is not forwarded comes here. Most causes to pass are no fault: all that the node itself
 * says comes by them, at any rate. So of one cause only the first packet of a tick of the coarse
 * clock (1 to 10 ms) is kept on each CPU; of all others the price is the search for the place and
 * the look at the clock. Whoever comes alone is always kept.
 *
 * A CPU is the only one to write to its places, and programs of one CPU do not interrupt each other.
 * Readers do: the time is 0 while the rest is written, and never twice the same, so that two copies
 * that are equal and have a time are of one packet.
 */
#ifndef PODWAY_LAST_PACKET_H
#define PODWAY_LAST_PACKET_H

#include "rules.h"

/* Where to write a packet that became of `cause`; NULL when it is not to be kept. */
static __always_inline struct last_packet *open_place(int cause, __u64 *now)
{
	struct last_packet *last;
	__u32 index;

	if (cause >= 0)
		index = cause;
	else if (cause <= REFUSED(0))
		index = LAST_REFUSED(REFUSED(0) - cause);
	else if (cause == LOST)
		index = LAST_RING_FULL;
	else
		return NULL;
	last = bpf_map_lookup_elem(&last_packets, &index);
	*now = bpf_ktime_get_coarse_ns();
	if (!last || last->at_ns == *now)
		return NULL;
	*(volatile __u64 *)&last->at_ns = 0;
	barrier();
	return last;
}

/* How many bytes of a frame are kept. The verifier wants both limits of the very register that is used. */
static __always_inline __u64 to_keep(const struct frame *frame)
{
	__u64 kept = frame->length;

	if (kept > KEPT_BYTES)
		kept = KEPT_BYTES;
	barrier_var(kept);
	return kept;
}

/* The rest, behind the header of `kept` bytes. */
static __always_inline void close_place(struct last_packet *last, const struct frame *frame,
					__u64 kept, __u64 now)
{
	last->ifindex = frame->ifindex;
	last->length = frame->length;
	last->kept = kept;
	barrier();
	*(volatile __u64 *)&last->at_ns = now;
}

static __always_inline void keep_xdp(struct xdp_md *ctx, const struct frame *frame, int cause)
{
	__u64 now, kept;
	struct last_packet *last = open_place(cause, &now);

	if (!last)
		return;
	kept = to_keep(frame);
	if (kept < ETH_HLEN || bpf_xdp_load_bytes(ctx, 0, last->header, kept))
		kept = 0;
	close_place(last, frame, kept, now);
}

static __always_inline void keep_skb(struct __sk_buff *skb, const struct frame *frame,
				     const struct port *port, int cause)
{
	__u64 now, kept;
	struct last_packet *last = open_place(cause, &now);

	if (!last)
		return;
	kept = to_keep(frame);
	if (kept < ETH_HLEN || bpf_skb_load_bytes(skb, 0, last->header, kept))
		kept = 0;
	/* What was for a ring has had its destination MAC written over. */
	if (cause == LOST && port)
		__builtin_memcpy(last->header, port->mac, sizeof(port->mac));
	close_place(last, frame, kept, now);
}

#endif

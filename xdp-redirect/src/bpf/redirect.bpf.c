// SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause
/*
 * The programs of every port: they redirect to a worker what is surely the dataplane's, and pass
 * everything else to the kernel. A redirected packet can only be sent or dropped afterwards, so
 * each doubt is decided for the kernel. The rules are in rules.h.
 *
 * One decision, two ways in: `podway_redirect` runs as XDP and redirects to the AF_XDP socket of
 * the queue; `podway_classify` runs at tcx ingress and redirects TCP to the TAP of the worker, which
 * keeps the offloads that XDP loses, and copies everything else to the worker's ring.
 * `podway_transmit` runs on the TAPs and sends what workers write there out of the port that they
 * name.
 *
 * Buffers. The XDP program is "xdp.frags": data..data_end is the first buffer only, and headers
 * are read there alone. Headers that a driver splits over buffers therefore pass as `malformed`.
 * At tcx the headers are pulled to the front first. Sizes are those of the whole packet.
 *
 * Limits that no XDP program can lift. Generic XDP hides a VLAN tag that the NIC has taken out of
 * the frame, so VLAN links must be served on the VLAN interface. The segment size of a GSO packet
 * is unknown there, which is why only TCP may exceed the route's MTU; a UDP-GSO packet of a pod
 * that fits as a whole looks like one datagram, so tx-udp-segmentation must be off at the pod's
 * end. At tcx a GSO packet is known for one, whatever its size, and the VLAN tag is seen.
 */
#include <linux/bpf.h>
#include <linux/errno.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/in6.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <linux/udp.h>
#include <stdbool.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#include "conntrack.h"
#include "last_packet.h"
#include "maps.h"
#include "rules.h"

/* The heartbeat of a port's worker, if it has beaten lately; NULL otherwise. */
static __always_inline struct heartbeat *living(const __u32 *worker)
{
	struct heartbeat *beat = worker ? bpf_map_lookup_elem(&heartbeats, worker) : NULL;
	__u64 at = beat ? *(volatile __u64 *)&beat->at_ns : 0;

	/* Known at once, where a heartbeat takes a second. */
	if (beat && *(volatile __u32 *)&beat->owner & OWNER_DIED)
		return NULL;

	/*
	 * The coarse clock costs no read of the hardware. It lags by up to a tick, so a fresh beat
	 * may lie in its future: the sum is compared, not the difference.
	 */
	return at && at + HEARTBEAT_LIMIT_NS >= bpf_ktime_get_coarse_ns() ? beat : NULL;
}

/* Redirects to the socket of the packet's queue: OURS when the kernel has taken it. */
static __always_inline int to_socket(struct xdp_md *ctx, const struct port *port)
{
	__u32 queue = ctx->rx_queue_index;
	__u32 index = port->xsk_base + queue;

	if (queue >= port->queues)
		return PASS_NO_SOCKET;
	if (!living(bpf_map_lookup_elem(&queue_workers, &index)))
		return PASS_WORKER_STALLED;
	/* The lower bits of the flags are what is returned when no socket is there. */
	if (bpf_redirect_map(&sockets, index, XDP_PASS) != XDP_REDIRECT)
		return PASS_NO_SOCKET;
	return OURS;
}

/*
 * Whether the kernel still has to finish a checksum of the packet, whichever (CHECKSUM_PARTIAL). No
 * helper tells; but bpf_l4_csum_replace() leaves the "checksum" of such a packet alone when it
 * stands for no pseudo-header (inet_proto_csum_replace4 in net/core/utils.c) and changes every
 * other one. What it is tried on are the first bytes of the destination MAC, which is the port's
 * and will be written anew.
 */
static __always_inline bool is_unfinished(struct __sk_buff *skb, const struct port *port)
{
	struct ethhdr *eth;

	if (bpf_l4_csum_replace(skb, 0, 0, 1, sizeof(__be16)))
		return true;
	eth = (void *)(long)skb->data;
	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return true;
	return eth->h_dest[0] == port->mac[0] && eth->h_dest[1] == port->mac[1];
}

/*
 * Whether a packet can do without the header that a TAP gives it. TCP cannot, since its super-frames
 * have a segment size, and all of a flow goes one way. Of the others the dataplane must know which
 * checksum is unfinished, and a packet has one at most: that of the tunnel that ends here, which
 * nobody needs; or, from a pod, that of its own UDP header, which looks so. That of a tunnel inside
 * the pod looks otherwise (but one in 65536, which the receiver drops). From an uplink the dataplane
 * does not trust looks, so that the TAP has to tell.
 */
static __always_inline bool is_plain(struct __sk_buff *skb, const struct frame *frame,
				     const struct port *port, const struct ip *ip)
{
	bool known;

	if (ip->protocol == IPPROTO_TCP)
		return false;
	known = ip->in_unfinished ||
		(port->role == ROLE_POD && looks_unfinished(ip, frame->end));
	return known || !is_unfinished(skb, port);
}

/*
 * Copies a packet of at most `size` bytes, which the verifier wants to be a constant, to a ring.
 * Nobody is woken: see wake().
 */
static __always_inline int put(struct __sk_buff *skb, void *ring, __u32 slot, const __u32 size)
{
	struct record *record = bpf_ringbuf_reserve(ring, sizeof(*record) + size, 0);
	__u64 length = skb->len; /* of a whole register, or the compiler tests a copy that it has cut */

	if (!record)
		return LOST;
	record->length = length;
	record->slot = slot;
	/*
	 * The verifier wants both limits of the very register that is passed on, so that the compiler
	 * must not make one test of them.
	 */
	asm volatile("" : "+r"(length));
	if (length > size)
		goto lost;
	asm volatile("" : "+r"(length));
	if (length < ETH_HLEN || bpf_skb_load_bytes(skb, 0, record + 1, length))
		goto lost;
	bpf_ringbuf_submit(record, BPF_RB_NO_WAKEUP);
	return TAKEN;
lost:
	bpf_ringbuf_discard(record, BPF_RB_NO_WAKEUP);
	return LOST;
}

/* Sizes of records, without headers, in bytes: small packets, those of a usual and of a large MTU. */
#define SMALL_RECORD 256
#define USUAL_RECORD 2048
#define LARGE_RECORD 16384

static __always_inline int to_ring(struct __sk_buff *skb, void *ring, __u32 slot)
{
	if (skb->len <= SMALL_RECORD)
		return put(skb, ring, slot, SMALL_RECORD);
	if (skb->len <= USUAL_RECORD)
		return put(skb, ring, slot, USUAL_RECORD);
	if (skb->len <= LARGE_RECORD)
		return put(skb, ring, slot, LARGE_RECORD);
	return put(skb, ring, slot, MAX_FRAME);
}

/*
 * Whether the worker is to be woken, by what is left of a packet that its ring has: redirected to
 * its TAP as a bell. The ring's own wake-up is an interrupt that the CPU sends to itself, which a
 * hypervisor may have to emulate, and the scheduler is not told that the waker is about to sleep
 * itself; a device's reader is woken at once, and on this CPU if that has nothing better to do.
 *
 * Only after the packet is in the ring: the worker says that it sleeps, and then looks at the ring
 * once more, so that one of both sees the other (the submission is a full barrier, xchg() in
 * bpf_ringbuf_commit). Two bells from two CPUs do no harm.
 */
static __always_inline bool rings_bell(struct __sk_buff *skb, struct heartbeat *beat)
{
	const __u8 tag[ETH_ALEN] = BELL_TAG;

	if (!*(volatile __u32 *)&beat->asleep)
		return false;
	/* Fails for want of memory only; the worker looks again within 100 ms. */
	if (bpf_skb_store_bytes(skb, 0, tag, sizeof(tag), 0))
		return false;
	*(volatile __u32 *)&beat->asleep = 0;
	__sync_fetch_and_add(&beat->bells, 1);
	return true;
}

/*
 * Gives the packet to its worker: TAKEN and LOST when it is in the ring or should be, OURS when it
 * is to be redirected to the TAP. There the port stands in place of the packet's own destination
 * MAC, which has done its duty. `tap` is where to redirect to; 0 when nothing is left to be.
 */
static __always_inline int to_worker(struct __sk_buff *skb, const struct port *port,
				     const struct frame *frame, const struct ip *ip, __u32 *tap)
{
	/* The kernel keeps a recorded rx queue plus one. */
	__u32 queue = skb->queue_mapping ? skb->queue_mapping - 1 : 0;
	struct heartbeat *beat;
	__u32 index, *worker, *ifindex;
	void *ring;

	if (queue >= port->queues)
		queue = 0;
	index = port->xsk_base + queue;
	worker = bpf_map_lookup_elem(&queue_workers, &index);
	beat = living(worker);
	if (!worker || !beat)
		return PASS_WORKER_STALLED;
	ifindex = bpf_map_lookup_elem(&taps, worker);
	if (!ifindex || !*ifindex)
		return PASS_NO_SOCKET;
	ring = bpf_map_lookup_elem(&rings, worker);
	if (ring && is_plain(skb, frame, port, ip)) {
		int done = to_ring(skb, ring, port->slot);

		if (rings_bell(skb, beat))
			*tap = *ifindex;
		return done;
	}

	const __u8 tag[ETH_ALEN] = PORT_TAG(port->slot);

	/* Fails for want of memory only. */
	if (bpf_skb_store_bytes(skb, 0, tag, sizeof(tag), 0))
		return PASS_NO_SOCKET;
	*tap = *ifindex;
	return OURS;
}

/* The port of an interface and the configuration, if the gate is open. */
static __always_inline int enter(__u32 ifindex, struct port **port, struct config **cfg)
{
	__u32 zero = 0;

	*port = bpf_map_lookup_elem(&ports, &ifindex);
	*cfg = bpf_map_lookup_elem(&config, &zero);
	if (!*port)
		return PASS_UNKNOWN_PORT;
	if (!*cfg || !*(volatile __u32 *)&(*cfg)->gate_open)
		return PASS_GATE_CLOSED;
	return OURS;
}

/*
 * A frame of this size, Ethernet header included, is cut on its way into a device of the usual
 * gso_max_size (gso_features_check in net/core/dev.c), and a TAP may have no other. GRO stops a bit
 * later, at this size without the Ethernet header.
 */
#define CUT_BY_TAP 65536

/* How many packets the worker gets of one that is redirected to its TAP. */
static __always_inline __u32 arrive(const struct __sk_buff *skb)
{
	__u32 segments = skb->gso_segs;

	return skb->len >= CUT_BY_TAP && segments ? segments : 1;
}

static __always_inline void count(const struct port *port, int cause, __u32 packets)
{
	__u32 slot = port ? port->slot : UNKNOWN_PORT_SLOT;
	struct port_counters *c = bpf_map_lookup_elem(&counters, &slot);

	if (c && cause <= REFUSED(0)) {
		__u32 index = REFUSED(0) - cause;

		if (index < REFUSE_CAUSE_COUNT)
			c->refused[index]++;
		return;
	}
	if (c && cause < 0)
		c->redirected += packets;
	if (c && cause == LOST)
		c->ring_full++;
	if (c && cause >= 0 && cause < PASS_CAUSE_COUNT)
		c->passed[cause]++;
}

SEC("xdp.frags")
int podway_redirect(struct xdp_md *ctx)
{
	struct frame frame = {
		.data = (void *)(long)ctx->data,
		.end = (void *)(long)ctx->data_end,
		.length = bpf_xdp_get_buff_len(ctx),
		.ifindex = ctx->ingress_ifindex,
	};
	struct config *cfg;
	struct ip ip = {};
	struct port *port;
	int cause = enter(frame.ifindex, &port, &cfg);

	if (cause == OURS)
		cause = classify(&frame, port, cfg, &ip);
	if (cause == OURS && cfg->flags & CONFIG_TRANSLATES)
		cause = check_xdp_connection(ctx, &ip, frame.end);
	if (cause == OURS)
		cause = to_socket(ctx, port);
	count(port, cause, 1);
	keep_xdp(ctx, &frame, cause);
	if (cause <= REFUSED(0))
		return XDP_DROP;
	return cause == OURS ? XDP_REDIRECT : XDP_PASS;
}

SEC("tcx/ingress")
int podway_classify(struct __sk_buff *skb)
{
	struct frame frame = {
		.length = skb->len,
		.ifindex = skb->ifindex,
		.gso = skb->gso_size,
	};
	__u32 headers = skb->len < MAX_HEADERS ? skb->len : MAX_HEADERS;
	struct config *cfg;
	struct ip ip = {};
	struct port *port;
	__u32 tap = 0;
	int cause = enter(frame.ifindex, &port, &cfg);

	if (cause == OURS) {
		/*
		 * A short packet is pulled for nothing: only with CAP_PERFMON may a program tell how
		 * much lies in front.
		 */
		if ((void *)(long)skb->data + MAX_HEADERS > (void *)(long)skb->data_end)
			bpf_skb_pull_data(skb, headers);
		frame.data = (void *)(long)skb->data;
		frame.end = (void *)(long)skb->data_end;
		cause = skb->vlan_present ? PASS_NOT_IP : classify(&frame, port, cfg, &ip);
	}
	if (cause == OURS && cfg->flags & CONFIG_TRANSLATES)
		cause = check_skb_connection(skb, &ip, frame.end);
	if (cause == OURS)
		cause = to_worker(skb, port, &frame, &ip, &tap);
	count(port, cause, cause == OURS ? arrive(skb) : 1);
	keep_skb(skb, &frame, port, cause);
	if (tap)
		return bpf_redirect(tap, 0);
	return cause < 0 ? TC_ACT_SHOT : TC_ACT_UNSPEC;
}

/*
 * Tells a worker that what it wrote has not left, by what a helper gave: a negative error number; or
 * that of a queue, NET_XMIT_DROP or NET_XMIT_CN (include/linux/netdevice.h). The latter comes of an
 * interface that is down or has no carrier (noop_enqueue() in net/sched/sch_generic.c), too; of a
 * queue it may mean that another packet was dropped for this one.
 */
static __always_inline void tell_unsent(__u32 worker, long result)
{
	struct unsent *u = bpf_map_lookup_elem(&unsent, &worker);

	if (!u)
		return;
	/* The worker reads both after its system call, within which this runs. */
	u->error = result < 0 ? -result : ENOBUFS;
	u->packets++;
}

/*
 * The source MAC names the exit, and becomes that interface's own.
 *
 * What leaves is a clone, because that has no socket. The packet itself has the TAP's, and when it is
 * cut its last segment keeps it, over a veth into the next network namespace (skb_segment() in
 * net/core/skbuff.c). There GRO joins it with none of the others, and lets it overtake them if it
 * has PSH, as it usually does: a segment out of order and a further ACK for each super-frame.
 *
 * Nor does it have the TAP's queue, which would be its tx queue (skb_tx_hash() in net/core/dev.c): then
 * the flow's hash chooses that, as it does for what leaves by a socket. By two queues packets of one
 * flow would overtake each other.
 */
SEC("tcx/ingress")
int podway_transmit(struct __sk_buff *skb)
{
	const __u8 tag[ETH_ALEN] = PORT_TAG(0);
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = (void *)(long)skb->data;
	__u8 *mac = eth->h_source;
	__u32 slot, worker;
	struct exit *out;
	long result;

	if ((void *)(eth + 1) > end)
		return TC_ACT_SHOT;
	if (mac[0] != tag[0] || mac[1] != tag[1] || mac[2] != tag[2])
		return TC_ACT_SHOT;
	worker = mac[3];
	slot = mac[4] << 8 | mac[5];
	out = bpf_map_lookup_elem(&exits, &slot);
	if (!out || !out->ifindex) {
		tell_unsent(worker, -ENXIO);
		return TC_ACT_SHOT;
	}
	skb->queue_mapping = 0;
	result = bpf_skb_store_bytes(skb, ETH_ALEN, out->mac, ETH_ALEN, 0);
	if (!result)
		result = bpf_clone_redirect(skb, out->ifindex, 0);
	if (result)
		tell_unsent(worker, result);
	return TC_ACT_SHOT;
}

/*
 * What user space cannot look up itself when it goes through the rules (src/walk.rs): attached to
 * nothing, run by BPF_PROG_RUN alone. The packet is the one that would be forwarded, without a tunnel;
 * its mark is the index of a socket. Answers with what conntrack makes of it, and whether the socket
 * is there.
 */
SEC("tcx/ingress")
int podway_ask(struct __sk_buff *skb)
{
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = (void *)(long)skb->data;
	__u32 index = skb->mark;
	struct ip ip = {};
	int cause = PASS_MALFORMED;
	int answer;

	if ((void *)(eth + 1) <= end)
		cause = read_ip(&ip, eth->h_proto, eth + 1, end);
	if (cause == OURS)
		cause = check_skb_connection(skb, &ip, end);
	answer = cause == OURS ? ANSWER_OURS : cause;
	if (bpf_map_lookup_elem(&sockets, &index))
		answer |= ANSWER_SOCKET;
	return answer;
}

/* Of those that the kernel knows; conntrack.h says why it has to be one. */
char LICENSE[] SEC("license") = "Dual BSD/GPL";

// SPDX-License-Identifier: Apache-2.0
/*
 * The programs of every port: they redirect to a worker what is surely the dataplane's, and pass
 * everything else to the kernel. A redirected packet can only be sent or dropped afterwards, so
 * each doubt is decided for the kernel.
 *
 * One decision, two ways in: `podway_redirect` runs as XDP and redirects to the AF_XDP socket of
 * the queue; `podway_classify` runs at tcx ingress and redirects TCP to the TAP of the worker, which
 * keeps the offloads that XDP loses, and everything else to its ring device, where `podway_deliver`
 * gives it to an AF_XDP socket and `podway_stray` finds what XDP did not see. `podway_transmit` runs on the TAPs and sends what workers write
 * there out of the port that they name.
 *
 *   is the interface a port?                       no -> unknown_port
 *   is the gate open?                              no -> gate_closed
 *   port's own destination MAC?                    no -> not_for_us
 *   IPv4 without options, or IPv6?                 no -> not_ip, malformed, options
 *
 *   pod port:                                      uplink:
 *     destination may be forwarded?                  destination is an address of the node?
 *       no -> multicast, link_local                    yes: VXLAN, a VNI of ours, IP inside?
 *     source is this pod's own?                               no -> not_vxlan, unknown_vni, ...
 *       no -> foreign_source                                  yes: one packet inside?
 *     destination is an address of the node?                  no -> batch
 *       yes -> local_address                                  yes: go on with it
 *                                                    destination and source may be forwarded?
 *                                                      no -> multicast, link_local, foreign_source
 *                                                    destination is an attached pod?
 *                                                      no -> no_such_pod
 *   both, on the packet that would be forwarded:
 *     TCP, UDP, ICMP, not of one link only?        no -> protocol, neighbor_discovery,
 *                                                        extension_header, fragment
 *     TTL or hop limit above 1?                    no -> hop_limit
 *     longest prefix has a resolved next hop?      no -> no_route, unresolved
 *     fits route and port, or is TCP?              no -> oversize
 *
 *   is the queue's worker alive?                   no -> worker_stalled
 *   is its socket or TAP there?                    no -> no_socket
 *   redirected
 *
 * Malformed packets. What cannot be read far enough to know whose it is (a cut header, a wrong
 * version) passes as `malformed`, and the kernel drops it. What is ours by its addresses but wrong
 * elsewhere (a total length beyond the packet, a bad IPv4 header checksum, a cut L4 header) is
 * redirected, and the dataplane drops it under a reason of its own.
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

#include "shared.h"

/* No cause to pass so far. Functions below return this or an enum pass_cause. */
#define OURS (-1)

/* Both chains of headers that are looked at, over IPv6: 14 + 40 + 8 + 8 + 14 + 40 + 1, rounded. */
#define MAX_HEADERS 128

/* No IP header can state more, so a larger frame is BIG TCP, which is the kernel's. */
#define MAX_FRAME (ETH_HLEN + 65535)

/* IPv4 fragment field, RFC 791: the more-fragments bit and the offset. */
#define IPV4_FRAGMENT 0x3fff

#define VXLAN_I_FLAG 0x08

/* RFC 7348, section 5. Reserved bits are ignored on receipt. */
struct vxlan_header {
	__u8 flags;
	__u8 reserved[3];
	__be32 vni; /* upper 24 bits */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct config);
} config SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(map_flags, BPF_F_MMAPABLE);
	__uint(max_entries, MAX_WORKERS);
	__type(key, __u32);
	__type(value, struct heartbeat);
} heartbeats SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32); /* interface index */
	__type(value, struct port);
} ports SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_SOCKETS);
	__type(key, __u32); /* xsk_base + queue */
	__type(value, __u32); /* worker */
} queue_workers SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_SOCKETS);
	__type(key, __u32); /* xsk_base + queue */
	__type(value, __u32); /* socket */
} sockets SEC(".maps");

/* Where `podway_classify` redirects to, by worker. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_WORKERS);
	__type(key, __u32);
	__type(value, struct devices);
} devices_of SEC(".maps");

/* The sockets of the workers' ring devices, by worker. */
struct {
	__uint(type, BPF_MAP_TYPE_XSKMAP);
	__uint(max_entries, MAX_WORKERS);
	__type(key, __u32);
	__type(value, __u32); /* socket */
} ring_sockets SEC(".maps");

/* Where `podway_transmit` sends to, by slot. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32);
	__type(value, struct exit);
} exits SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_VNIS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u8); /* presence is all that counts */
} vnis SEC(".maps");

/* The FIB's prefixes: a withdrawn one leaves here before it leaves the FIB. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_PREFIXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix4);
	__type(value, struct route);
} prefixes4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_PREFIXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct prefix6);
	__type(value, struct route);
} prefixes6 SEC(".maps");

/* Unicast addresses of the node itself; network byte order, as in all maps of addresses. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LOCAL_ADDRESSES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __be32);
	__type(value, __u8);
} local4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_LOCAL_ADDRESSES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct in6_addr);
	__type(value, __u8);
} local6 SEC(".maps");

/* Addresses of attached pods to the interface index of their port. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PODS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __be32);
	__type(value, __u32);
} pods4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_PODS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct in6_addr);
	__type(value, __u32);
} pods6 SEC(".maps");

/* A flow of UDP, in network byte order. IPv4 addresses take the first bytes. */
struct udp_flow {
	struct in6_addr source;
	struct in6_addr destination;
	__be16 source_port;
	__be16 destination_port;
};

/*
 * UDP flows that sent what only the kernel can cut to datagrams, and when: they stay the kernel's
 * for a while, lest their packets overtake each other on two paths.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, MAX_OVERSIZE_FLOWS);
	__type(key, struct udp_flow);
	__type(value, __u64); /* coarse CLOCK_MONOTONIC */
} oversize_flows SEC(".maps");

/* When the last such flow was seen: most nodes have none, and their packets skip the search. */
static volatile __u64 last_oversize_ns;

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32); /* slot */
	__type(value, struct port_counters);
} counters SEC(".maps");

/* An address in network byte order; which member counts is said by `struct ip`. */
union address {
	__be32 v4;
	struct in6_addr v6;
};

/* What the rules need of one IP header. */
struct ip {
	union address source;
	union address destination;
	void *payload;   /* first byte after the header, not yet known to be readable */
	__u32 length;    /* of header and payload in bytes, as the header says */
	__u32 available; /* bytes from the header to the end of the packet, over all buffers */
	bool v6;
	bool super_frame; /* larger than the port's MTU, or a GSO packet */
	bool fragment;   /* IPv4 only: an IPv6 fragment shows as its protocol */
	bool in_unfinished; /* in a tunnel whose own UDP checksum looks unfinished */
	__u8 protocol;
	__u8 hops;       /* TTL or hop limit */
};

static __always_inline int read_ipv4(struct ip *ip, void *header, void *end)
{
	struct iphdr *h = header;

	if ((void *)(h + 1) > end || h->version != 4 || h->ihl < 5)
		return PASS_MALFORMED;
	if (h->ihl > 5)
		return PASS_OPTIONS;
	ip->v6 = false;
	ip->source.v4 = h->saddr;
	ip->destination.v4 = h->daddr;
	ip->length = bpf_ntohs(h->tot_len);
	ip->fragment = h->frag_off & bpf_htons(IPV4_FRAGMENT);
	ip->protocol = h->protocol;
	ip->hops = h->ttl;
	ip->payload = h + 1;
	return OURS;
}

static __always_inline int read_ipv6(struct ip *ip, void *header, void *end)
{
	struct ipv6hdr *h = header;

	if ((void *)(h + 1) > end || h->version != 6)
		return PASS_MALFORMED;
	ip->v6 = true;
	ip->source.v6 = h->saddr;
	ip->destination.v6 = h->daddr;
	ip->length = sizeof(*h) + bpf_ntohs(h->payload_len);
	ip->fragment = false;
	ip->protocol = h->nexthdr;
	ip->hops = h->hop_limit;
	ip->payload = h + 1;
	return OURS;
}

static __always_inline int read_ip(struct ip *ip, __be16 ethertype, void *header, void *end)
{
	if (ethertype == bpf_htons(ETH_P_IP))
		return read_ipv4(ip, header, end);
	if (ethertype == bpf_htons(ETH_P_IPV6))
		return read_ipv6(ip, header, end);
	return PASS_NOT_IP;
}

/* Whether routers forward packets to and from the address: OURS, MULTICAST or LINK_LOCAL. */
static __always_inline int scope(const union address *a, bool v6)
{
	if (v6) {
		const __u8 *b = a->v6.s6_addr;
		const __be32 *w = a->v6.s6_addr32;

		if (b[0] == 0xff)
			return PASS_MULTICAST;
		if (b[0] == 0xfe && (b[1] & 0xc0) == 0x80)
			return PASS_LINK_LOCAL;
		/* :: and ::1 */
		if (!(w[0] | w[1] | w[2] | (w[3] & bpf_htonl(~1U))))
			return PASS_LINK_LOCAL;
		return OURS;
	}

	__u32 host = bpf_ntohl(a->v4);

	/* 224.0.0.0/4 is multicast; 240.0.0.0/4 is reserved and holds the broadcast address. */
	if (host >> 29 == 7)
		return PASS_MULTICAST;
	if (host >> 24 == 0 || host >> 24 == 127 || host >> 16 == 0xa9fe)
		return PASS_LINK_LOCAL;
	return OURS;
}

static __always_inline bool is_local(const union address *a, bool v6)
{
	if (v6)
		return bpf_map_lookup_elem(&local6, &a->v6);
	return bpf_map_lookup_elem(&local4, &a->v4);
}

/* Interface index of the pod that has the address; 0 for none. */
static __always_inline __u32 pod_of(const union address *a, bool v6)
{
	__u32 *ifindex;

	if (v6)
		ifindex = bpf_map_lookup_elem(&pods6, &a->v6);
	else
		ifindex = bpf_map_lookup_elem(&pods4, &a->v4);
	return ifindex ? *ifindex : 0;
}

static __always_inline struct route *route_to(const union address *a, bool v6)
{
	if (v6) {
		struct prefix6 key = { .length = 128 };

		__builtin_memcpy(key.address, &a->v6, sizeof(key.address));
		return bpf_map_lookup_elem(&prefixes6, &key);
	}

	struct prefix4 key = { .length = 32 };

	__builtin_memcpy(key.address, &a->v4, sizeof(key.address));
	return bpf_map_lookup_elem(&prefixes4, &key);
}

/*
 * ICMPv6 that never leaves its link: MLD (130-132, 143), ND (133-137), inverse ND (141, 142),
 * SEND (148, 149) and multicast router discovery (151-153). Unknown neighbours of these numbers
 * are left to the kernel with them.
 */
static __always_inline bool is_link_icmpv6(__u8 type)
{
	return (type >= 130 && type <= 137) || (type >= 141 && type <= 143) ||
	       (type >= 148 && type <= 153);
}

static __always_inline int check_protocol(const struct ip *ip, void *end)
{
	switch (ip->protocol) {
	case IPPROTO_TCP:
	case IPPROTO_UDP:
		return OURS;
	case IPPROTO_ICMP:
		return ip->v6 ? PASS_PROTOCOL : OURS;
	}
	if (!ip->v6)
		return PASS_PROTOCOL;
	switch (ip->protocol) {
	case IPPROTO_ICMPV6: {
		__u8 *type = ip->payload;

		if ((void *)(type + 1) > end)
			return PASS_MALFORMED;
		return is_link_icmpv6(*type) ? PASS_NEIGHBOR_DISCOVERY : OURS;
	}
	case IPPROTO_FRAGMENT:
		return PASS_FRAGMENT;
	case IPPROTO_HOPOPTS:
	case IPPROTO_ROUTING:
	case IPPROTO_AH:
	case IPPROTO_DSTOPTS:
	case IPPROTO_MH:
	case 139: /* Host Identity Protocol, RFC 7401 */
	case 140: /* Shim6, RFC 5533 */
		return PASS_EXTENSION_HEADER;
	}
	return PASS_PROTOCOL;
}

/*
 * A UDP super-frame is the kernel's: it may be a batch of datagrams or a tunnel inside the pod, and
 * nothing here tells which.
 */
static __always_inline int check_udp(const struct ip *ip, void *end, bool fits)
{
	struct udphdr *udp = ip->payload;
	struct udp_flow flow = {};
	__u64 now, *seen;

	if (fits && !last_oversize_ns)
		return OURS;
	/* A header that is cut is the dataplane's to name and drop. */
	if ((void *)(udp + 1) > end)
		return fits ? OURS : PASS_OVERSIZE;
	now = bpf_ktime_get_coarse_ns();
	if (fits && last_oversize_ns + OVERSIZE_FLOW_NS < now)
		return OURS;
	flow.source = ip->source.v6;
	flow.destination = ip->destination.v6;
	flow.source_port = udp->source;
	flow.destination_port = udp->dest;
	if (!fits) {
		last_oversize_ns = now;
		bpf_map_update_elem(&oversize_flows, &flow, &now, BPF_ANY);
		return PASS_OVERSIZE;
	}
	seen = bpf_map_lookup_elem(&oversize_flows, &flow);
	return seen && *seen + OVERSIZE_FLOW_NS >= now ? PASS_OVERSIZE : OURS;
}

/* The rules for the packet that would be forwarded, whichever port it came by. */
static __always_inline int check_forward(const struct ip *ip, void *end)
{
	struct route *route;
	bool fits;
	int cause = check_protocol(ip, end);

	if (cause != OURS)
		return cause;
	if (ip->hops <= 1)
		return PASS_HOP_LIMIT;
	route = route_to(&ip->destination, ip->v6);
	if (!route)
		return PASS_NO_ROUTE;
	if (!route->mtu)
		return PASS_UNRESOLVED;
	/* A length beyond the packet is the dataplane's to name and drop. */
	if (ip->length > ip->available)
		return OURS;
	fits = ip->length <= route->mtu && !ip->super_frame;
	if (ip->protocol == IPPROTO_UDP && !ip->fragment)
		return check_udp(ip, end, fits);
	if (fits)
		return OURS;
	/* A fragment is never a GSO packet, so it cannot be cut to size as one. */
	if (ip->protocol == IPPROTO_TCP && !ip->fragment)
		return OURS;
	return PASS_OVERSIZE;
}

static __always_inline int check_pod(const struct ip *ip, __u32 ifindex)
{
	int cause = scope(&ip->destination, ip->v6);

	if (cause != OURS)
		return cause;
	if (pod_of(&ip->source, ip->v6) != ifindex)
		return PASS_FOREIGN_SOURCE;
	if (is_local(&ip->destination, ip->v6))
		return PASS_LOCAL_ADDRESS;
	return OURS;
}

/* Whether a UDP checksum is the folded sum of the pseudo-header, as of a packet not yet finished. */
static __always_inline bool looks_unfinished(const struct ip *ip, void *end)
{
	struct udphdr *udp = ip->payload;
	__u64 sum;

	if (ip->protocol != IPPROTO_UDP || ip->fragment || (void *)(udp + 1) > end)
		return false;
	sum = bpf_htons(IPPROTO_UDP) + udp->len;
	if (ip->v6) {
		for (int i = 0; i < 4; i++)
			sum += (__u64)ip->source.v6.s6_addr32[i] + ip->destination.v6.s6_addr32[i];
	} else {
		sum += (__u64)ip->source.v4 + ip->destination.v4;
	}
	sum = (sum & 0xffffffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16 & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return udp->check == sum;
}

/* Replaces the outer packet, which is for this node, by the one inside its VXLAN header. */
static __always_inline int open_tunnel(struct ip *ip, const struct config *cfg, void *end)
{
	struct udphdr *udp = ip->payload;
	struct vxlan_header *vxlan;
	struct ethhdr *eth;
	__u32 outer, vni;
	int cause;

	if (ip->protocol != IPPROTO_UDP || ip->fragment)
		return PASS_NOT_VXLAN;
	if ((void *)(udp + 1) > end)
		return PASS_MALFORMED;
	if (!udp->dest || udp->dest != bpf_htons(cfg->vxlan_port))
		return PASS_NOT_VXLAN;
	vxlan = (void *)(udp + 1);
	if ((void *)(vxlan + 1) > end)
		return PASS_MALFORMED;
	if (!(vxlan->flags & VXLAN_I_FLAG))
		return PASS_NOT_VXLAN;
	vni = bpf_ntohl(vxlan->vni) >> 8;
	if (!bpf_map_lookup_elem(&vnis, &vni))
		return PASS_UNKNOWN_VNI;
	eth = (void *)(vxlan + 1);
	if ((void *)(eth + 1) > end)
		return PASS_MALFORMED;
	/* A unicast to another MAC than the VTEP's is the dataplane's to drop by name. */
	if (eth->h_dest[0] & 1)
		return PASS_NOT_FOR_US;
	outer = (ip->v6 ? sizeof(struct ipv6hdr) : sizeof(struct iphdr)) + sizeof(*udp) +
		sizeof(*vxlan) + sizeof(*eth);
	ip->available -= outer;
	ip->in_unfinished = looks_unfinished(ip, end);
	cause = read_ip(ip, eth->h_proto, eth + 1, end);
	if (cause != OURS)
		return cause;
	/*
	 * UDP GSO that no device has cut, or GRO of the same, carries several packets one after the
	 * other. What is behind a single one is at most the padding of a short Ethernet frame.
	 */
	if (ip->available > ip->length && ip->available > ETH_ZLEN - ETH_HLEN)
		return PASS_BATCH;
	return OURS;
}

static __always_inline int check_uplink(struct ip *ip, const struct config *cfg, void *end)
{
	int cause;

	if (is_local(&ip->destination, ip->v6)) {
		cause = open_tunnel(ip, cfg, end);
		if (cause != OURS)
			return cause;
	}
	cause = scope(&ip->destination, ip->v6);
	if (cause != OURS)
		return cause;
	if (scope(&ip->source, ip->v6) != OURS)
		return PASS_FOREIGN_SOURCE;
	if (!pod_of(&ip->destination, ip->v6))
		return PASS_NO_SUCH_POD;
	return OURS;
}

/* By halves, because the BPF backend of older clang calls memcmp() out of line. */
static __always_inline bool same_mac(const void *a, const void *b)
{
	const __u16 *x = a, *y = b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}

/* A frame as both kinds of program see it. */
struct frame {
	void *data;
	void *end;      /* of what may be read directly */
	__u64 length;   /* of the whole frame in bytes */
	__u32 ifindex;
	bool gso;       /* a super-frame, whatever its size; XDP does not know */
};

/* Finds whose the frame is, and its innermost IP header. */
static __always_inline int classify(const struct frame *frame, const struct port *port,
				    const struct config *cfg, struct ip *ip)
{
	struct ethhdr *eth = frame->data;
	int cause;

	if ((void *)(eth + 1) > frame->end)
		return PASS_MALFORMED;
	if (!same_mac(eth->h_dest, port->mac))
		return PASS_NOT_FOR_US;
	if (frame->length > MAX_FRAME)
		return PASS_OVERSIZE;
	ip->available = frame->length - ETH_HLEN;
	ip->super_frame = frame->gso || ip->available > port->mtu;
	cause = read_ip(ip, eth->h_proto, eth + 1, frame->end);
	if (cause != OURS)
		return cause;
	cause = port->role == ROLE_POD ? check_pod(ip, frame->ifindex)
				       : check_uplink(ip, cfg, frame->end);
	if (cause != OURS)
		return cause;
	return check_forward(ip, frame->end);
}

/* The worker that serves a port's queue, if it has beaten lately; NULL otherwise. */
static __always_inline __u32 *living_worker(__u32 index)
{
	__u32 *worker = bpf_map_lookup_elem(&queue_workers, &index);
	struct heartbeat *beat = worker ? bpf_map_lookup_elem(&heartbeats, worker) : NULL;
	__u64 at = beat ? *(volatile __u64 *)&beat->at_ns : 0;

	/*
	 * The coarse clock costs no read of the hardware. It lags by up to a tick, so a fresh beat
	 * may lie in its future: the sum is compared, not the difference.
	 */
	return at && at + HEARTBEAT_LIMIT_NS >= bpf_ktime_get_coarse_ns() ? worker : NULL;
}

/* Redirects to the socket of the packet's queue: OURS when the kernel has taken it. */
static __always_inline int to_socket(struct xdp_md *ctx, const struct port *port)
{
	__u32 queue = ctx->rx_queue_index;
	__u32 index = port->xsk_base + queue;

	if (queue >= port->queues)
		return PASS_NO_SOCKET;
	if (!living_worker(index))
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

/* A device that a packet is redirected to. */
struct way {
	__u32 ifindex;
	__u64 flags;
};

/*
 * Finds the device by which the packet's worker receives it. Writes the port into the packet in
 * place of its own destination MAC, which has done its duty; and, for a ring device, the worker in
 * place of its source.
 */
static __always_inline int to_worker(struct __sk_buff *skb, const struct port *port,
				     const struct frame *frame, const struct ip *ip,
				     struct way *way)
{
	/* The kernel keeps a recorded rx queue plus one. */
	__u32 queue = skb->queue_mapping ? skb->queue_mapping - 1 : 0;
	__u32 written = ETH_ALEN;
	struct devices *devices;
	__u32 *worker;

	if (queue >= port->queues)
		queue = 0;
	worker = living_worker(port->xsk_base + queue);
	if (!worker)
		return PASS_WORKER_STALLED;
	devices = bpf_map_lookup_elem(&devices_of, worker);
	if (!devices || !devices->tap)
		return PASS_NO_SOCKET;
	way->ifindex = devices->tap;
	if (devices->ring && is_plain(skb, frame, port, ip)) {
		way->ifindex = devices->ring;
		way->flags = BPF_F_INGRESS;
		/* The device has one queue. */
		skb->queue_mapping = 0;
		written = 2 * ETH_ALEN;
	}

	const __u8 macs[2][ETH_ALEN] = { PORT_TAG(port->slot), PORT_TAG(*worker) };

	/* Fails for want of memory only. */
	if (bpf_skb_store_bytes(skb, 0, macs, written, 0))
		return PASS_NO_SOCKET;
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

static __always_inline void count(const struct port *port, int cause)
{
	__u32 slot = port ? port->slot : UNKNOWN_PORT_SLOT;
	struct port_counters *c = bpf_map_lookup_elem(&counters, &slot);

	if (c && cause == OURS)
		c->redirected++;
	else if (c && cause >= 0 && cause < PASS_CAUSE_COUNT)
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
	if (cause == OURS)
		cause = to_socket(ctx, port);
	count(port, cause);
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
	struct way way = {};
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
	if (cause == OURS)
		cause = to_worker(skb, port, &frame, &ip, &way);
	count(port, cause);
	return cause == OURS ? bpf_redirect(way.ifindex, way.flags) : TC_ACT_UNSPEC;
}

/* The number in a tag (PORT_TAG); negative, as no key of a map is, when the address is none. */
static __always_inline int tagged(const __u8 *mac)
{
	const __u8 tag[ETH_ALEN] = PORT_TAG(0);

	if (mac[0] != tag[0] || mac[1] != tag[1] || mac[2] != tag[2] || mac[3] != tag[3])
		return -1;
	return mac[4] << 8 | mac[5];
}

/* On the ring devices, to which `podway_classify` redirects: the source MAC names the worker. */
SEC("xdp.frags")
int podway_deliver(struct xdp_md *ctx)
{
	struct ethhdr *eth = (void *)(long)ctx->data;
	int worker;

	if ((void *)(eth + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	worker = tagged(eth->h_source);
	if (worker < 0)
		return XDP_DROP;
	return bpf_redirect_map(&ring_sockets, worker, XDP_DROP);
}

/*
 * Behind `podway_deliver`: generic XDP does not see packets that tc had redirected before, by its
 * mirred action or at egress (skb_is_redirected() in net/core/dev.c), as of pods that are virtual
 * machines. They go to the TAP of the worker that they name.
 */
SEC("tcx/ingress")
int podway_stray(struct __sk_buff *skb)
{
	struct ethhdr *eth = (void *)(long)skb->data;
	struct devices *devices;
	int worker;

	if ((void *)(eth + 1) > (void *)(long)skb->data_end)
		return TC_ACT_SHOT;
	worker = tagged(eth->h_source);
	devices = bpf_map_lookup_elem(&devices_of, &worker);
	if (!devices || !devices->tap)
		return TC_ACT_SHOT;
	return bpf_redirect(devices->tap, 0);
}

/* The source MAC names the exit, and becomes that interface's own. */
SEC("tcx/ingress")
int podway_transmit(struct __sk_buff *skb)
{
	void *end = (void *)(long)skb->data_end;
	struct ethhdr *eth = (void *)(long)skb->data;
	struct exit *out;
	int slot;

	if ((void *)(eth + 1) > end)
		return TC_ACT_SHOT;
	slot = tagged(eth->h_source);
	out = bpf_map_lookup_elem(&exits, &slot);
	if (!out || !out->ifindex)
		return TC_ACT_SHOT;
	if (bpf_skb_store_bytes(skb, ETH_ALEN, out->mac, ETH_ALEN, 0))
		return TC_ACT_SHOT;
	return bpf_redirect(out->ifindex, 0);
}

char LICENSE[] SEC("license") = "Apache-2.0";

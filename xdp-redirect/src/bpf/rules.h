/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * The rules by which the programs tell whose a packet is, the same for both kinds.
 *
 *   is the interface a port?                       no -> unknown_port
 *   is the gate open?                              no -> gate_closed
 *   pod port: may the pod send from this address?  no -> refused: spoofed_source
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
 *                                                    natively: source in a fast-path prefix?
 *                                                      no -> no_route
 *   both, on the packet that would be forwarded:
 *     an IPv4 fragment, and the kernel puts those together?
 *       yes -> fragment
 *     TCP, UDP, ICMP, not of one link only?        no -> protocol, neighbor_discovery,
 *                                                        extension_header, fragment
 *     TTL or hop limit above 1?                    no -> hop_limit
 *     longest prefix has a resolved next hop?      no -> no_route, unresolved
 *     fits route and port, or is TCP?              no -> oversize
 *
 *   rules of the node translate addresses, and conntrack this connection's?
 *     yes -> translated (conntrack.h), fragment
 *
 *   uplink: sent by this node, or in a tunnel by a pod of it?
 *     yes -> refused: own_source
 *
 *   is the queue's worker alive?                   no -> worker_stalled
 *   is its socket or TAP there?                    no -> no_socket
 *   redirected
 *
 * Malformed packets. What cannot be read far enough to know whose it is (a cut header, a wrong
 * version) passes as `malformed`, and the kernel drops it. What is ours by its addresses but wrong
 * elsewhere (a total length beyond the packet, a bad IPv4 header checksum, a cut L4 header) is
 * redirected, and the dataplane drops it under a reason of its own.
 */
#ifndef PODWAY_RULES_H
#define PODWAY_RULES_H

#include "maps.h"

/* No cause to pass so far. Functions below return this or an enum pass_cause. */
#define OURS (-1)
/* Ours, and in the ring of its worker. */
#define TAKEN (-2)
/* Ours, but the ring of its worker had no room. */
#define LOST (-3)

/* Refused for an enum refuse_cause; all numbers from that of the first one downwards are. */
#define REFUSED(cause) (-16 - (cause))

/* All headers that are looked at, over IPv6: Ethernet, IP, UDP, VXLAN, and Ethernet, IP, UDP. */
#define MAX_HEADERS (14 + 40 + 8 + 8 + 14 + 40 + 8)

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
static __always_inline int check_forward(const struct ip *ip, const struct config *cfg, void *end)
{
	struct route *route;
	bool fits;
	int cause;

	/*
	 * A kernel that puts fragments together waits for all of a packet. Of one whose first fragments
	 * are the kernel's for their size it would never see the last.
	 */
	if (ip->fragment && cfg->flags & CONFIG_DEFRAGMENTS)
		return PASS_FRAGMENT;
	cause = check_protocol(ip, end);
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

/* A frame as both kinds of program see it. */
struct frame {
	void *data;
	void *end;      /* of what may be read directly */
	__u64 length;   /* of the whole frame in bytes */
	__u32 ifindex;
	bool gso;       /* a super-frame, whatever its size; XDP does not know */
};

/* ARP for IPv4 over Ethernet, RFC 826. */
struct arp_ipv4 {
	__u8 fixed[8];
	__u8 sender_mac[6];
	__u8 sender[4];
	__u8 target_mac[6];
	__u8 target[4];
};

/*
 * Whether a pod may send this at all, whatever becomes of it. The address is its own; or none, or one of
 * its link, and the packet is for that link: DHCP (RFC 2131), router and neighbour solicitations,
 * duplicate address detection (RFC 4862). What is too short to tell passes as malformed later.
 */
static __always_inline int check_sender(const struct frame *frame, const struct ethhdr *eth)
{
	void *header = (void *)(eth + 1);
	union address source = {}, destination = {};

	if (eth->h_proto == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr *h = header;

		if ((void *)(h + 1) > frame->end || h->version != 6)
			return OURS;
		source.v6 = h->saddr;
		destination.v6 = h->daddr;
		if (pod_of(&source, true) == frame->ifindex)
			return OURS;
		if (scope(&source, true) == PASS_LINK_LOCAL && scope(&destination, true) != OURS)
			return OURS;
		return REFUSED(REFUSE_SPOOFED_SOURCE);
	}
	if (eth->h_proto == bpf_htons(ETH_P_IP)) {
		struct iphdr *h = header;

		if ((void *)(h + 1) > frame->end || h->version != 4)
			return OURS;
		source.v4 = h->saddr;
		if (!h->saddr && h->daddr == bpf_htonl(0xffffffff))
			return OURS;
	} else if (eth->h_proto == bpf_htons(ETH_P_ARP)) {
		struct arp_ipv4 *arp = header;

		if ((void *)(arp + 1) > frame->end)
			return OURS;
		__builtin_memcpy(&source.v4, arp->sender, sizeof(arp->sender));
		/* A probe, RFC 5227. */
		if (!source.v4)
			return OURS;
	} else {
		return OURS;
	}
	if (pod_of(&source, false) == frame->ifindex)
		return OURS;
	return REFUSED(REFUSE_SPOOFED_SOURCE);
}

static __always_inline int check_pod(const struct ip *ip)
{
	int cause = scope(&ip->destination, ip->v6);

	if (cause != OURS)
		return cause;
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

	bool tunnel = is_local(&ip->destination, ip->v6);

	if (tunnel) {
		cause = open_tunnel(ip, cfg, end);
		if (cause != OURS)
			return cause;
	}
	/* RFC 1812, section 5.3.7. What comes natively from a pod's address is the kernel's to judge. */
	if (is_local(&ip->source, ip->v6))
		return REFUSED(REFUSE_OWN_SOURCE);
	if (pod_of(&ip->source, ip->v6))
		return tunnel ? REFUSED(REFUSE_OWN_SOURCE) : PASS_FOREIGN_SOURCE;
	cause = scope(&ip->destination, ip->v6);
	if (cause != OURS)
		return cause;
	if (scope(&ip->source, ip->v6) != OURS)
		return PASS_FOREIGN_SOURCE;
	if (!pod_of(&ip->destination, ip->v6))
		return PASS_NO_SUCH_POD;
	/*
	 * What the world answers stays with the kernel, as what it was asked did. Not what routers say of
	 * packets that the dataplane has sent: it listens to them.
	 */
	if (!tunnel && ip->protocol != (ip->v6 ? IPPROTO_ICMPV6 : IPPROTO_ICMP) &&
	    !route_to(&ip->source, ip->v6))
		return PASS_NO_ROUTE;
	return OURS;
}

/* By halves, because the BPF backend of older clang calls memcmp() out of line. */
static __always_inline bool same_mac(const void *a, const void *b)
{
	const __u16 *x = a, *y = b;

	return !((x[0] ^ y[0]) | (x[1] ^ y[1]) | (x[2] ^ y[2]));
}

/*
 * Keeps what the packet was, for people who look for why it did not get through. Not of a UDP
 * super-frame, whose datagrams may fit.
 */
static __always_inline void note_oversize(const struct ip *ip, __u32 slot)
{
	struct route *route;
	struct oversize *last;

	if (ip->super_frame)
		return;
	route = route_to(&ip->destination, ip->v6);
	last = bpf_map_lookup_elem(&oversize, &slot);
	if (!route || !last || ip->length <= route->mtu)
		return;
	last->at_ns = bpf_ktime_get_ns();
	__builtin_memcpy(last->source, &ip->source, sizeof(last->source));
	__builtin_memcpy(last->destination, &ip->destination, sizeof(last->destination));
	last->length = ip->length;
	last->mtu = route->mtu;
	last->version = ip->v6 ? 6 : 4;
}

/* Finds whose the frame is, and its innermost IP header. */
static __always_inline int classify(const struct frame *frame, const struct port *port,
				    const struct config *cfg, struct ip *ip)
{
	struct ethhdr *eth = frame->data;
	int cause;

	if ((void *)(eth + 1) > frame->end)
		return PASS_MALFORMED;
	/* Before anything passes. */
	if (port->role == ROLE_POD && !port->any_source) {
		cause = check_sender(frame, eth);
		if (cause != OURS)
			return cause;
	}
	if (!same_mac(eth->h_dest, port->mac))
		return PASS_NOT_FOR_US;
	if (frame->length > MAX_FRAME)
		return PASS_OVERSIZE;
	ip->available = frame->length - ETH_HLEN;
	ip->super_frame = frame->gso || ip->available > port->mtu;
	cause = read_ip(ip, eth->h_proto, eth + 1, frame->end);
	if (cause != OURS)
		return cause;
	cause = port->role == ROLE_POD ? check_pod(ip)
				       : check_uplink(ip, cfg, frame->end);
	if (cause != OURS)
		return cause;
	cause = check_forward(ip, cfg, frame->end);
	if (cause == PASS_OVERSIZE)
		note_oversize(ip, port->slot);
	return cause;
}

#endif

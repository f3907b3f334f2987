/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * Connections whose addresses the node's own rules translate (NAT): of a pod to a service, where
 * kube-proxy writes such rules. The kernel translates the first packet, which is for an address that
 * is no pod's, and it has to translate the answers back: those come from a pod, for a pod, and look
 * like any other packet of ours. Conntrack knows.
 *
 * The kernel lets only programs under a licence compatible with the GPL ask it.
 */
#ifndef PODWAY_CONNTRACK_H
#define PODWAY_CONNTRACK_H

#include "rules.h"

/* net/netfilter/nf_conntrack_bpf.c: the first form, of 12 bytes, which later kernels take as well. */
struct bpf_ct_opts {
	__s32 netns_id;
	__s32 error;
	__u8 l4proto;
	__u8 dir;
	__u8 reserved[2];
};

/* Never looked into; but libbpf finds a function only by types that are complete. */
struct nf_conn {
	unsigned long status;
};

struct nf_conn *bpf_skb_ct_lookup(struct __sk_buff *skb, struct bpf_sock_tuple *tuple,
				  __u32 tuple_size, struct bpf_ct_opts *options,
				  __u32 options_size) __ksym __weak;
struct nf_conn *bpf_xdp_ct_lookup(struct xdp_md *ctx, struct bpf_sock_tuple *tuple,
				  __u32 tuple_size, struct bpf_ct_opts *options,
				  __u32 options_size) __ksym __weak;
void bpf_ct_release(struct nf_conn *ct) __ksym __weak;

/* RFC 792: the types that are no errors, of those that anybody sends. */
#define ICMP_ECHO_REPLY 0
#define ICMP_ECHO 8

/* What conntrack is asked for. */
struct connection {
	struct bpf_sock_tuple tuple;
	struct bpf_ct_opts options;
};

static __always_inline void set_tuple(struct bpf_sock_tuple *tuple, bool v6,
				      const union address *source, __be16 source_port,
				      const union address *destination, __be16 destination_port)
{
	if (v6) {
		__builtin_memcpy(tuple->ipv6.saddr, source, sizeof(tuple->ipv6.saddr));
		__builtin_memcpy(tuple->ipv6.daddr, destination, sizeof(tuple->ipv6.daddr));
		tuple->ipv6.sport = source_port;
		tuple->ipv6.dport = destination_port;
	} else {
		tuple->ipv4.saddr = source->v4;
		tuple->ipv4.daddr = destination->v4;
		tuple->ipv4.sport = source_port;
		tuple->ipv4.dport = destination_port;
	}
}

/* Neither ours nor to be passed until conntrack has been asked. */
#define ASK (-4)

/*
 * Puts the packet's connection into `c`: ASK; or OURS or a cause where nothing is to be asked. A
 * fragment has no ports, and an ICMP error is about a packet that it quotes: the kernel knows better.
 */
static __always_inline int connection_of(struct connection *c, const struct ip *ip, void *end)
{
	struct udphdr *ports = ip->payload;
	__u8 *icmp_type = ip->payload;

	if (ip->fragment)
		return PASS_FRAGMENT;
	/* A header that is cut is the dataplane's to name and drop. */
	if ((void *)(icmp_type + 1) > end)
		return OURS;
	if (ip->protocol == IPPROTO_ICMP)
		return *icmp_type == ICMP_ECHO || *icmp_type == ICMP_ECHO_REPLY
			       ? OURS
			       : PASS_TRANSLATED;
	/* Errors have the lower types (RFC 4443, section 2.1). */
	if (ip->protocol == IPPROTO_ICMPV6)
		return *icmp_type >= 128 ? OURS : PASS_TRANSLATED;
	/* TCP begins with its ports as well. */
	if ((void *)&ports->len > end)
		return OURS;
	c->options.netns_id = BPF_F_CURRENT_NETNS;
	c->options.l4proto = ip->protocol;
	set_tuple(&c->tuple, ip->v6, &ip->source, ports->source, &ip->destination, ports->dest);
	return ASK;
}

/*
 * Functions of these names: whether conntrack knows the tuple, and whether the packet is OURS as far
 * as its connection goes, or PASS_TRANSLATED. The two kinds of program have helpers of their own; a
 * kernel without conntrack has none, and translates nothing.
 *
 * A connection has two tuples, one for each direction. Of one that is not translated each is the
 * other turned round; so one that is known while the other way round is not is translated. To read
 * the kernel's own mark of that, CAP_PERFMON would be wanted.
 */
#define DEFINE_CHECK_CONNECTION(name, knows, context, lookup)                                     \
	static __always_inline bool knows(context *ctx, struct connection *c, bool v6)            \
	{                                                                                         \
		struct nf_conn *ct;                                                               \
                                                                                                  \
		if (v6)                                                                           \
			ct = lookup(ctx, &c->tuple, sizeof(c->tuple.ipv6), &c->options,           \
				    sizeof(c->options));                                          \
		else                                                                              \
			ct = lookup(ctx, &c->tuple, sizeof(c->tuple.ipv4), &c->options,           \
				    sizeof(c->options));                                          \
		if (ct)                                                                           \
			bpf_ct_release(ct);                                                       \
		return ct;                                                                        \
	}                                                                                         \
                                                                                                  \
	static __always_inline int name(context *ctx, const struct ip *ip, void *end)             \
	{                                                                                         \
		struct udphdr *ports = ip->payload;                                               \
		struct connection c = {};                                                         \
		int cause = connection_of(&c, ip, end);                                           \
                                                                                                  \
		if (cause != ASK)                                                                 \
			return cause;                                                             \
		if (!bpf_ksym_exists(lookup) || !knows(ctx, &c, ip->v6))                          \
			return OURS;                                                              \
		if ((void *)&ports->len > end)                                                    \
			return OURS;                                                              \
		set_tuple(&c.tuple, ip->v6, &ip->destination, ports->dest, &ip->source,           \
			  ports->source);                                                         \
		return knows(ctx, &c, ip->v6) ? OURS : PASS_TRANSLATED;                           \
	}

DEFINE_CHECK_CONNECTION(check_skb_connection, skb_knows, struct __sk_buff, bpf_skb_ct_lookup)
DEFINE_CHECK_CONNECTION(check_xdp_connection, xdp_knows, struct xdp_md, bpf_xdp_ct_lookup)

#endif

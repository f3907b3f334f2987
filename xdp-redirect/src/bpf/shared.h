/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
/*
 * What the XDP program and its loader agree on: limits, map values, causes.
 *
 * The Rust side writes the same layouts by hand (src/layout.rs, src/stats.rs); its tests compare
 * them with this file and with the sizes of the loaded maps.
 * Include <linux/types.h> first. Numbers are in host byte order unless a comment says otherwise.
 */
#ifndef PODWAY_SHARED_H
#define PODWAY_SHARED_H

#define MAX_PORTS 1024
#define MAX_SOCKETS 4096
#define MAX_WORKERS 64
#define MAX_VNIS 4096
#define MAX_LOCAL_ADDRESSES 4096
#define MAX_PODS 65536
#define MAX_PREFIXES 1048576
#define MAX_OVERSIZE_FLOWS 4096

/* Counter slot of frames whose interface is not in `ports`; no port may have it. */
#define UNKNOWN_PORT_SLOT (MAX_PORTS - 1)

/* How long a UDP flow stays the kernel's after it sent a packet that is too large for us. */
#define OVERSIZE_FLOW_NS 1000000000ULL

/* What the kernel leaves of a robust futex when its owner ends (FUTEX_OWNER_DIED, linux/futex.h). */
#define OWNER_DIED 0x40000000

/* A worker whose last heartbeat is older gets no packets. It beats at least every 100 ms. */
#define HEARTBEAT_LIMIT_NS 1000000000ULL

/*
 * Why a packet was left to the kernel: X(symbol, name, help).
 * The position is the index in `port_counters.passed`; the name is what users see, so it stays.
 */
#define PASS_CAUSES(X) \
	X(GATE_CLOSED, "gate_closed", "the gate is closed: Podway starts, stops or was told to stand aside") \
	X(WORKER_STALLED, "worker_stalled", "the worker of the queue has not beaten for a second") \
	X(NO_SOCKET, "no_socket", "no AF_XDP socket or TAP serves the queue") \
	X(UNKNOWN_PORT, "unknown_port", "the interface is not a port of this node") \
	X(NOT_FOR_US, "not_for_us", "the destination MAC is not the port's, broadcast and multicast included") \
	X(NOT_IP, "not_ip", "neither IPv4 nor IPv6: ARP, VLAN-tagged and other frames") \
	X(MALFORMED, "malformed", "a header that is needed to classify is cut short or has a wrong version") \
	X(OPTIONS, "options", "an IPv4 header with options") \
	X(EXTENSION_HEADER, "extension_header", "an IPv6 extension header other than a fragment header") \
	X(FRAGMENT, "fragment", "an IPv6 fragment; of IPv4, where the kernel puts fragments together, as it does for conntrack") \
	X(PROTOCOL, "protocol", "neither TCP, UDP nor ICMP") \
	X(NEIGHBOR_DISCOVERY, "neighbor_discovery", "ICMPv6 that concerns one link: ND, MLD and their kin") \
	X(MULTICAST, "multicast", "the destination is multicast, broadcast or reserved (224.0.0.0/3, ff00::/8)") \
	X(LINK_LOCAL, "link_local", "the destination is link-local, loopback or unspecified") \
	X(LOCAL_ADDRESS, "local_address", "a pod speaks to an address of the node") \
	X(FOREIGN_SOURCE, "foreign_source", "a source that no router forwards, or natively that of a pod of this node") \
	X(NO_SUCH_POD, "no_such_pod", "the destination of a packet from the uplink is no attached pod") \
	X(NO_ROUTE, "no_route", "the destination, or natively the source of a packet from the uplink, is in no fast-path prefix") \
	X(UNRESOLVED, "unresolved", "the destination's prefix has no resolved next hop") \
	X(HOP_LIMIT, "hop_limit", "TTL or hop limit is used up; the kernel answers") \
	X(OVERSIZE, "oversize", "larger than the route or the port carries and not to be cut, or larger than 64 KiB") \
	X(NOT_VXLAN, "not_vxlan", "for the node itself and not VXLAN with a VNI on the configured port") \
	X(UNKNOWN_VNI, "unknown_vni", "VXLAN of a network that this node does not serve") \
	X(BATCH, "batch", "a tunnel's datagram that holds more than one packet (unsegmented UDP GSO)") \
	X(TRANSLATED, "translated", "conntrack translates the connection (NAT), as for a service; ICMP errors where it may")

enum pass_cause {
#define X(symbol, name, help) PASS_##symbol,
	PASS_CAUSES(X)
#undef X
	PASS_CAUSE_COUNT
};

/*
 * Why a packet was refused, so that neither the dataplane nor the kernel has it: X(symbol, name, help).
 * The position is the index in `port_counters.refused`; the name is what users see, so it stays.
 */
#define REFUSE_CAUSES(X) \
	X(SPOOFED_SOURCE, "spoofed_source", "pod port: the sender is not the pod by its address, ARP included") \
	X(OWN_SOURCE, "own_source", "uplink: the sender has an address of this node, or in a tunnel of one of its pods")

enum refuse_cause {
#define X(symbol, name, help) REFUSE_##symbol,
	REFUSE_CAUSES(X)
#undef X
	REFUSE_CAUSE_COUNT
};

/* What is behind a port. */
enum role {
	ROLE_POD = 0,
	ROLE_UPLINK = 1,
};

/* Rules of the node translate addresses: conntrack is asked. */
#define CONFIG_TRANSLATES 0x1
/* The node's kernel puts IPv4 fragments together: it gets them all. */
#define CONFIG_DEFRAGMENTS 0x2

/* `config`, one entry, memory-mapped by the loader: each field is written by one atomic operation. */
struct config {
	__u32 gate_open;  /* 0: pass everything */
	__u16 vxlan_port; /* UDP port; 0: no tunnels */
	__u16 flags;      /* CONFIG_... */
};

/* `heartbeats`, indexed by worker, memory-mapped: a cache line each, since workers write often. */
struct heartbeat {
	__u64 at_ns;  /* CLOCK_MONOTONIC; 0: the worker is not there */
	__u32 asleep; /* 1: wake it for the next packet of its ring; the program takes it back to 0 */
	__u32 owner;  /* the worker's thread; with OWNER_DIED it has ended */
	__u64 bells;  /* sent to its TAP, by all programs */
	__u64 unused2[5];
};

/* `unsent`, indexed by worker, memory-mapped: what it wrote to its TAP and did not leave. */
struct unsent {
	__u64 packets; /* a super-frame is one */
	__u32 error;   /* why the last of them did not: a number of errno.h */
	__u32 unused;
	__u64 unused2[6];
};

/* `ports`, keyed by interface index. */
struct port {
	__u8 mac[6];    /* the interface's own */
	__u8 role;      /* enum role */
	__u8 any_source; /* whether a pod may send from any address */
	__u32 slot;     /* index in `counters` */
	__u32 xsk_base; /* index in `sockets` and `queue_workers` of queue 0 */
	__u32 queues;   /* how many entries from `xsk_base` on are the port's */
	__u32 mtu;      /* the interface's, in bytes; a larger packet is a super-frame */
};

/*
 * A port in place of a MAC address, on the way between a port and a TAP: a locally administered
 * address that says "pw", and the slot in network byte order. On the way out the fourth byte is the
 * worker that writes.
 */
#define PORT_TAG(slot) { 0x02, 0x70, 0x77, 0, (slot) >> 8 & 0xff, (slot) & 0xff }

/*
 * In place of a port: the worker has the packet in its ring already, and what comes by the TAP only
 * wakes it.
 */
#define BELL_TAG { 0x02, 0x70, 0x77, 1, 0, 0 }

/* A packet in the ring of a worker. Its bytes follow; what is behind them is not set. */
struct record {
	__u32 length; /* in bytes */
	__u16 slot;   /* of the port that it came by */
	__u16 unused;
};

/* `exits`, indexed by slot. */
struct exit {
	__u32 ifindex; /* 0: none */
	__u8 mac[6];   /* the interface's own */
	__u8 unused[2];
};

/* Keys of `prefixes4` and `prefixes6`; the address in network byte order. */
struct prefix4 {
	__u32 length;
	__u8 address[4];
};

struct prefix6 {
	__u32 length;
	__u8 address[16];
};

/* Value of `prefixes4` and `prefixes6`. */
struct route {
	__u16 mtu; /* largest L3 packet in bytes; 0: known but unresolved, the kernel's */
	__u16 unused;
};

/*
 * `oversize`, per CPU, indexed by slot: the last packet that was left to the kernel because its route
 * carries less. Addresses in network byte order; IPv4 ones take the first bytes.
 */
struct oversize {
	__u64 at_ns; /* CLOCK_MONOTONIC; 0: none yet */
	__u8 source[16];
	__u8 destination[16];
	__u32 length;  /* of the IP packet in bytes */
	__u16 mtu;     /* what the route carries */
	__u16 version; /* 4 or 6 */
};

/* Bytes of a packet that are kept: Ethernet, IPv6, UDP, VXLAN, and in it Ethernet, IPv6 and the ports. */
#define KEPT_BYTES 128

/* Indexes of `last_packets`: an enum pass_cause; behind these each enum refuse_cause; then this. */
#define LAST_REFUSED(cause) (PASS_CAUSE_COUNT + (cause))
#define LAST_RING_FULL LAST_REFUSED(REFUSE_CAUSE_COUNT)
#define LAST_PACKETS (LAST_RING_FULL + 1)

/* `last_packets`, per CPU: the last packet that was passed, refused or lost for a cause, as it came. */
struct last_packet {
	__u64 at_ns;   /* coarse CLOCK_MONOTONIC; 0: none yet, or it is being written */
	__u32 ifindex; /* of the interface that it came by */
	__u32 length;  /* in bytes */
	__u32 kept;    /* how many of them are below */
	__u32 unused;
	__u8 header[KEPT_BYTES];
};

/* What `podway_ask` answers: this or an enum pass_cause, and a bit. */
#define ANSWER_OURS 0xff
#define ANSWER_SOCKET 0x100

/* `counters`, per CPU, indexed by slot. */
struct port_counters {
	__u64 redirected;
	__u64 ring_full; /* redirected, but the worker's ring had no room */
	__u64 passed[PASS_CAUSE_COUNT];
	__u64 refused[REFUSE_CAUSE_COUNT];
};

#endif

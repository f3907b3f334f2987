/* SPDX-License-Identifier: Apache-2.0 */
/*
 * What generator, sink and their loader agree on. The Rust side has the same numbers in
 * traffic.rs and pacing.rs; a test in mod.rs compares them.
 */
#ifndef PODWAY_GENERATOR_SHARED_H
#define PODWAY_GENERATOR_SHARED_H

/* First bytes of the payload of every generated datagram, in network byte order; the flow follows. */
#define MAGIC 0x506f6477

#define MAX_FLOWS 16384

/* What a tunnel puts in front of a packet: Ethernet 14, IPv4 20, UDP 8, VXLAN 8. */
#define OUTER_LENGTH 50

/* Length of the headers of a generated packet and of its magic and flow. */
#define INNER_LENGTH 50

/* Intervals are counted in sixteenths of the target; the last bin has all that are longer. */
#define INTERVAL_BINS 64
#define BINS_PER_TARGET 16

#endif

//! AF_XDP sockets on a veth pair. Each test has a network namespace of its own; they need root.
#![allow(missing_docs, reason = "tests are described by their names")]

mod support;

use std::time::{Duration, Instant};

use podway_dataplane::xsk::{BindMode, FramePool, QueueConfig, Region, TxMetadata, Umem};

use support::frames::{self, udp, udp_checksum_is_valid};
use support::namespace::{ip, patiently, run};
use support::redirect::{Redirect, XdpMode};
use support::{Bench, Capture, Sender, in_namespace};

fn receiving() -> QueueConfig {
    QueueConfig {
        posted: 64,
        ..QueueConfig::default()
    }
}

fn sending() -> QueueConfig {
    QueueConfig {
        tx_size: Some(64),
        completion_size: 64,
        ..receiving()
    }
}

#[test]
fn one_packet_arrives_unchanged() {
    in_namespace(|| {
        let mut bench = Bench::new(1, 128);
        let mut queue = bench.open(0, &receiving()).unwrap();
        assert_eq!((queue.mode, queue.rx.posted()), (BindMode::Copy, 64));
        let redirect = Redirect::attach(bench.near, XdpMode::Generic);
        redirect.insert(0, queue.rx.fd());

        let packet = udp(1, b"one packet");
        Sender::new().send_plain(bench.far, std::slice::from_ref(&packet));
        assert_eq!(bench.receive(&mut queue, 1), [packet]);

        assert_eq!(queue.rx.posted(), 63);
        assert_eq!(queue.rx.refill(&mut bench.pool, 64), 1);
        assert_eq!((queue.rx.posted(), bench.pool.available()), (64, 64));
        bench.close(queue);
    });
}

#[test]
fn native_mode_delivers_as_well() {
    in_namespace(|| {
        let mut bench = Bench::new(1, 128);
        let mut queue = bench.open(0, &receiving()).unwrap();
        let redirect = Redirect::attach(bench.near, XdpMode::Native);
        redirect.insert(0, queue.rx.fd());
        let packets: Vec<_> = (0..32).map(|flow| udp(flow, b"native")).collect();
        Sender::new().send_plain(bench.far, &packets);
        assert_eq!(bench.receive(&mut queue, 32), packets);
        bench.close(queue);
    });
}

#[test]
fn a_super_frame_arrives_as_a_chain_of_full_frames() {
    in_namespace(|| {
        let mut bench = Bench::new(1, 128);
        let mut queue = bench.open(0, &receiving()).unwrap();
        let redirect = Redirect::attach(bench.near, XdpMode::Generic);
        redirect.insert(0, queue.rx.fd());

        // The longest that is not cut on the way: the kernel's limit (GSO_LEGACY_MAX_SIZE, 64 KiB)
        // counts the Ethernet header.
        let (packet, vnet) = frames::tcp_super_frame(false, 65535 - 54, 1448);
        let mut sender = Sender::new();
        assert_eq!(sender.send(bench.far, &packet, vnet), Ok(()));

        let region = std::sync::Arc::clone(bench.umem.region());
        let (mut lengths, mut bytes) = (Vec::new(), Vec::new());
        assert!(patiently(|| queue.rx.received() == 18));
        // The limit falls within the packet, which is taken whole all the same.
        let taken = queue.rx.receive(1, |frame, more| {
            assert_eq!(frame.headroom(), 256);
            lengths.push((frame.len(), more));
            bytes.extend_from_slice(region.bytes(&frame));
            bench.pool.put(frame);
        });
        assert_eq!(taken, 18);
        let mut expected = vec![(3840, true); 17];
        expected.push((65535 - 17 * 3840, false));
        assert_eq!(lengths, expected);
        assert_eq!(bytes, packet);
        bench.close(queue);
    });
}

/// Two queues, and how many of 32 flows each of them gets.
fn flows_by_queue(mode: XdpMode) -> [Vec<Vec<u8>>; 2] {
    let mut bench = Bench::new(2, 256);
    let redirect = Redirect::attach(bench.near, mode);
    let mut queues = [0, 1].map(|queue| bench.open(queue, &receiving()).unwrap());
    for (number, queue) in (0..).zip(&queues) {
        redirect.insert(number, queue.rx.fd());
    }
    let packets: Vec<_> = (0..32).map(|flow| udp(flow, b"flow")).collect();
    let mut sender = Sender::new();
    sender.send_plain(bench.far, &packets);
    let mut arrived = 0;
    assert!(patiently(|| {
        arrived = queues.iter_mut().map(|queue| queue.rx.received()).sum();
        arrived == 32
    }));
    let flows = queues.each_mut().map(|queue| {
        let waiting = queue.rx.received();
        bench.receive(queue, waiting)
    });
    let mut all = flows.concat();
    all.sort();
    assert_eq!(all, packets);

    // A flow keeps its queue.
    for (queue, flows) in queues.iter_mut().zip(&flows) {
        sender.send_plain(bench.far, flows);
        assert_eq!(bench.receive(queue, flows.len()), *flows);
    }
    let [first, second] = queues;
    for frame in first.close() {
        bench.pool.put(frame);
    }
    bench.close(second);
    flows
}

#[test]
fn in_native_mode_each_queue_gets_its_flows() {
    in_namespace(|| {
        let [first, second] = flows_by_queue(XdpMode::Native);
        assert!(!first.is_empty() && !second.is_empty());
    });
}

#[test]
fn in_generic_mode_a_veth_delivers_to_its_first_queue() {
    // veth_xmit records no rx queue (since 5.17), so generic XDP takes the first for all packets.
    in_namespace(|| {
        let flows = flows_by_queue(XdpMode::Generic);
        assert_eq!(flows.map(|flows| flows.len()), [32, 0]);
    });
}

#[test]
fn packets_that_find_the_rx_ring_full_are_counted() {
    in_namespace(|| {
        let mut bench = Bench::new(1, 128);
        let config = QueueConfig {
            rx_size: 4,
            ..receiving()
        };
        let mut queue = bench.open(0, &config).unwrap();
        let handle = queue.rx.stats_handle();
        let redirect = Redirect::attach(bench.near, XdpMode::Generic);
        redirect.insert(0, queue.rx.fd());
        let packets: Vec<_> = (0..10).map(|flow| udp(flow, b"full")).collect();
        Sender::new().send_plain(bench.far, &packets);
        assert!(patiently(|| handle.read().unwrap().rx_ring_full == 6));
        let statistics = queue.rx.statistics().unwrap();
        assert_eq!((statistics.rx_ring_full, statistics.rx_dropped), (6, 0));
        assert_eq!(bench.receive(&mut queue, 4), packets[..4]);
        bench.close(queue);
        assert_eq!(handle.read(), None);
    });
}

#[test]
fn packets_that_find_no_posted_frame_are_counted() {
    in_namespace(|| {
        let mut bench = Bench::new(1, 128);
        let config = QueueConfig {
            posted: 3,
            ..receiving()
        };
        let mut queue = bench.open(0, &config).unwrap();
        let redirect = Redirect::attach(bench.near, XdpMode::Generic);
        redirect.insert(0, queue.rx.fd());
        let packets: Vec<_> = (0..5).map(|flow| udp(flow, b"empty")).collect();
        let mut sender = Sender::new();
        sender.send_plain(bench.far, &packets);
        assert!(patiently(|| queue.rx.statistics().unwrap().rx_dropped == 2));
        let statistics = queue.rx.statistics().unwrap();
        assert_eq!(
            (statistics.rx_fill_ring_empty_descs, statistics.rx_ring_full),
            (2, 0)
        );
        assert_eq!(bench.receive(&mut queue, 3), packets[..3]);
        assert_eq!(queue.rx.posted(), 0);

        // A super-frame that does not fit whole is lost whole, and costs no frame.
        queue.rx.refill(&mut bench.pool, 17);
        let (packet, vnet) = frames::tcp_super_frame(false, 65535 - 54, 1448);
        assert_eq!(sender.send(bench.far, &packet, vnet), Ok(()));
        assert!(patiently(|| queue.rx.statistics().unwrap().rx_dropped == 3));
        assert_eq!(queue.rx.posted(), 17);
        queue.rx.refill(&mut bench.pool, 18);
        assert_eq!(sender.send(bench.far, &packet, vnet), Ok(()));
        assert_eq!(bench.receive(&mut queue, 1), [packet]);
        assert_eq!(queue.rx.posted(), 0);
        bench.close(queue);
    });
}

#[test]
fn a_thousand_frames_sent_all_arrive_and_complete() {
    in_namespace(|| {
        let mut bench = Bench::new(1, 256);
        let mut queue = bench.open(0, &sending()).unwrap();
        let capture = Capture::new(bench.far);
        let region = std::sync::Arc::clone(bench.umem.region());
        let tx = queue.tx.as_mut().unwrap();
        let packets: Vec<_> = (0..1000).map(|flow| udp(flow, b"sent")).collect();
        let mut refused = 0;
        for packet in &packets {
            let mut frame = bench.pool.get().unwrap();
            assert!(frame.set_data(256, packet.len()));
            region.bytes_mut(&mut frame).copy_from_slice(packet);
            if let Err(refusal) = tx.send(frame, None) {
                refused += 1;
                tx.flush().unwrap();
                assert!(patiently(|| {
                    tx.reap(&mut bench.pool);
                    tx.outstanding() == 0
                }));
                tx.send(refusal.into_inner(), None).unwrap();
            }
        }
        tx.flush().unwrap();
        assert!(patiently(|| {
            tx.reap(&mut bench.pool);
            tx.outstanding() == 0
        }));
        // The ring of 64 was full each time it had 64.
        assert_eq!(refused, 15);
        let received: Vec<_> = capture
            .rest()
            .into_iter()
            .map(|frame| frame.bytes)
            .collect();
        assert_eq!(received, packets);
        assert_eq!((tx.malformed(), queue.rx.malformed()), (0, 0));
        assert_eq!(queue.rx.statistics().unwrap().tx_invalid_descs, 0);
        bench.close(queue);
    });
}

#[test]
fn a_chain_is_sent_as_one_packet() {
    in_namespace(|| {
        let mut bench = Bench::new(1, 128);
        ip("link set far mtu 9000");
        ip("link set near mtu 9000");
        let mut queue = bench.open(0, &sending()).unwrap();
        let capture = Capture::new(bench.far);
        let region = std::sync::Arc::clone(bench.umem.region());
        let packet = udp(1, &frames::pattern(8900));
        let mut chain = Vec::new();
        for part in packet.chunks(3840) {
            let mut frame = bench.pool.get().unwrap();
            assert!(frame.set_data(256, part.len()));
            region.bytes_mut(&mut frame).copy_from_slice(part);
            chain.push(frame);
        }
        assert_eq!(chain.len(), 3);
        let tx = queue.tx.as_mut().unwrap();
        tx.send_chain(&mut chain).unwrap();
        assert_eq!((chain.len(), tx.outstanding(), tx.room()), (0, 3, 61));
        tx.flush().unwrap();
        assert_eq!(capture.next().unwrap().bytes, packet);
        assert!(patiently(|| {
            tx.reap(&mut bench.pool);
            tx.outstanding() == 0
        }));
        bench.close(queue);
    });
}

#[test]
fn a_chain_too_long_for_the_kernel_is_dropped_and_completes() {
    in_namespace(|| {
        let mut bench = Bench::new(1, 128);
        let mut queue = bench.open(0, &sending()).unwrap();
        let capture = Capture::new(bench.far);
        let region = std::sync::Arc::clone(bench.umem.region());
        let packet = udp(1, &frames::pattern(1400));
        let tx = queue.tx.as_mut().unwrap();
        // The longest that is sent, one more, and a lone frame after it.
        for count in [18, 19, 1] {
            let mut chain = Vec::new();
            for part in packet.chunks(packet.len().div_ceil(count)) {
                let mut frame = bench.pool.get().unwrap();
                assert!(frame.set_data(256, part.len()));
                region.bytes_mut(&mut frame).copy_from_slice(part);
                chain.push(frame);
            }
            assert_eq!(chain.len(), count);
            tx.send_chain(&mut chain).unwrap();
            tx.flush().unwrap();
            assert!(patiently(|| {
                tx.reap(&mut bench.pool);
                tx.outstanding() == 0
            }));
        }
        for _ in 0..2 {
            assert!(capture.next().unwrap().bytes == packet);
        }
        assert_eq!(capture.next(), None);
        bench.close(queue);
    });
}

#[test]
fn a_checksum_request_is_honoured() {
    in_namespace(|| {
        let mut bench = Bench::new(1, 128);
        // Without the offload the kernel finishes the checksum before the frame leaves.
        run("ethtool", "-K near tx off");
        assert!(bench.umem.checksum_offload());
        let mut queue = bench.open(0, &sending()).unwrap();
        let capture = Capture::new(bench.far);
        let region = std::sync::Arc::clone(bench.umem.region());
        let finished = udp(7, b"to be summed");
        let mut unfinished = finished.clone();
        frames::unfinish(&mut unfinished, false, 40, 17);
        assert!(!udp_checksum_is_valid(&unfinished));

        let tx = queue.tx.as_mut().unwrap();
        assert_eq!((tx.checksum_offload(), tx.headroom_needed()), (true, 24));
        let request = TxMetadata {
            csum_start: 34,
            csum_offset: 6,
        };
        let mut send = |packet: &[u8], start: usize, request| {
            let mut frame = bench.pool.get().unwrap();
            assert!(frame.set_data(start, packet.len()));
            region.bytes_mut(&mut frame).copy_from_slice(packet);
            tx.send(frame, request).map_err(|refusal| {
                bench.pool.put(refusal.into_inner());
            })
        };
        assert_eq!(send(&unfinished, 24, Some(request)), Ok(()));
        assert_eq!(send(&finished, 24, None), Ok(()));
        // What the kernel would refuse, and never complete, does not get to it.
        assert_eq!(send(&finished, 23, None), Err(()));
        assert_eq!(send(&[], 256, None), Err(()));
        let beyond = TxMetadata {
            csum_offset: u16::try_from(finished.len()).unwrap() - 34 - 1,
            ..request
        };
        assert_eq!(send(&finished, 256, Some(beyond)), Err(()));
        tx.flush().unwrap();
        for _ in 0..2 {
            assert_eq!(capture.next().unwrap().bytes, finished);
        }
        bench.close(queue);
    });
}

#[test]
fn the_interface_down_is_told_and_loses_no_frame() {
    in_namespace(|| {
        let mut bench = Bench::new(1, 128);
        let mut queue = bench.open(0, &sending()).unwrap();
        let tx = queue.tx.as_mut().unwrap();
        let mut frame = bench.pool.get().unwrap();
        assert!(frame.set_data(256, 60));
        tx.send(frame, None).unwrap();
        ip("link set near down");
        let error = tx.flush().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENETDOWN));
        ip("link del near");
        let error = tx.flush().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::ENXIO));
        assert_eq!((tx.reap(&mut bench.pool), tx.outstanding()), (0, 1));
        assert_eq!(queue.rx.receive(64, |_, _| panic!("a packet")), 0);
        bench.close(queue);
    });
}

#[test]
fn a_queue_that_does_not_exist_is_named_with_what_does() {
    in_namespace(|| {
        let mut bench = Bench::new(2, 128);
        let error = bench.open(2, &receiving()).unwrap_err();
        assert_eq!(
            error.to_string(),
            "near queue 2: cannot bind: Invalid argument (os error 22): the interface has 2 \
             queues, numbered from 0: use one of them, or give it more (ethtool -L near)"
        );
        assert_eq!(bench.pool.available(), 128);

        let error = bench
            .umem
            .open_queue(4000, 0, &receiving(), &mut bench.pool)
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "interface 4000 queue 0: cannot bind: No such device (os error 19): the interface is \
             gone, or in another network namespace than the process"
        );
        let config = QueueConfig {
            rx_size: 100,
            ..receiving()
        };
        assert_eq!(
            bench.open(0, &config).unwrap_err().to_string(),
            "near queue 0: cannot make the rx ring: Invalid argument (os error 22): use a ring \
             size that is a power of two"
        );
        assert_eq!(bench.pool.available(), 128);
    });
}

#[test]
fn a_taken_queue_is_waited_for_and_then_named() {
    in_namespace(|| {
        let mut bench = Bench::new(1, 256);
        let holder = bench.open(0, &receiving()).unwrap();
        let config = QueueConfig {
            busy_retry: Duration::from_millis(50),
            ..receiving()
        };
        let begin = Instant::now();
        let error = bench.open(0, &config).unwrap_err();
        assert!(begin.elapsed() >= Duration::from_millis(50));
        assert!(error.is_taken());
        assert_eq!(
            error.to_string(),
            "near queue 0: cannot bind: Device or resource busy (os error 16): the queue is \
             taken: stop the other AF_XDP program on this interface"
        );
        assert_eq!(bench.pool.available(), 256 - 64);

        let holder = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            holder.close()
        });
        let queue = bench.open(0, &receiving()).unwrap();
        for frame in holder.join().unwrap() {
            bench.pool.put(frame);
        }
        bench.close(queue);
    });
}

#[test]
fn the_anchor_needs_loopback_queue_0_and_says_so() {
    in_namespace(|| {
        for state in ["down", "up"] {
            ip(&format!("link set lo {state}"));
            let (region, _frames) = Region::new(64).unwrap();
            let umem = Umem::new(region).unwrap();
            let (region, _frames) = Region::new(64).unwrap();
            let error = Umem::new(region).unwrap_err();
            assert!(error.is_taken());
            assert_eq!(
                error.to_string(),
                "memory region on loopback queue 0: cannot bind: Device or resource busy \
                 (os error 16): another dataplane or AF_XDP program runs in this network \
                 namespace: stop it"
            );
            drop(umem);
        }
    });
}

#[test]
fn zero_copy_is_tried_and_its_refusal_told() {
    in_namespace(|| {
        let mut bench = Bench::new(1, 128);
        let config = QueueConfig {
            try_zero_copy: true,
            ..receiving()
        };
        let mut queue = bench.open(0, &config).unwrap();
        assert_eq!(queue.mode, BindMode::Copy);
        assert_eq!(
            queue.reason.as_deref(),
            Some("near queue 0: cannot bind: Operation not supported (os error 95)")
        );
        let redirect = Redirect::attach(bench.near, XdpMode::Generic);
        redirect.insert(0, queue.rx.fd());
        Sender::new().send_plain(bench.far, &[udp(1, b"copied")]);
        assert_eq!(bench.receive(&mut queue, 1).len(), 1);
        bench.close(queue);
    });
}

#[test]
fn frames_survive_being_attached_and_detached_under_traffic() {
    in_namespace(|| {
        let mut bench = Bench::new(1, 256);
        let redirect = Redirect::attach(bench.near, XdpMode::Generic);
        let mut sender = Sender::new();
        let packets: Vec<_> = (0..32).map(|flow| udp(flow, b"cycle")).collect();
        for cycle in 0..20 {
            let mut queue = bench.open(0, &sending()).unwrap();
            redirect.insert(0, queue.rx.fd());
            sender.send_plain(bench.far, &packets);
            // Some are taken, some wait in the rx ring, some sit in the tx ring unsent.
            let received = bench.receive(&mut queue, cycle);
            assert!(received.len() >= cycle);
            let mut frame = bench.pool.get().unwrap();
            assert!(frame.set_data(256, 60));
            queue.tx.as_mut().unwrap().send(frame, None).unwrap();
            bench.close(queue);
        }
        // Every token is there once, none twice.
        let mut pool = std::mem::replace(&mut bench.pool, FramePool::new(Vec::new()));
        let mut places: Vec<_> = std::iter::from_fn(|| pool.get())
            .map(|mut frame| {
                frame.set_data(0, 1);
                bench.umem.region().bytes(&frame).as_ptr().addr()
            })
            .collect();
        places.sort_unstable();
        places.dedup();
        assert_eq!(places.len(), 256);
    });
}

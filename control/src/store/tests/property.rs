//! Any sequence of changes, any crash, any damage.

use proptest::prelude::*;

use super::*;

fn entries() -> impl Strategy<Value = Entry> {
    let name = "[a-c]";
    prop_oneof![
        (name, 1..4_u8).prop_map(|(name, number)| node(&name, number)),
        name.prop_map(Entry::NoNode),
        (0..6_u8, name).prop_map(|(number, node)| route(number, &node)),
        (0..6_u8).prop_map(|number| Entry::NoRoute(prefix(number))),
        name.prop_map(|name| uplink(&name)),
        name.prop_map(Entry::NoPort),
    ]
}

fn groups(most: usize) -> impl Strategy<Value = Vec<Vec<Entry>>> {
    prop::collection::vec(prop::collection::vec(entries(), 1..4), 1..most)
}

/// A file whose snapshot is what `first` leaves, and which has a line for each of `groups`; where
/// its lines end, and the states that they leave, from that of the snapshot on.
fn file(first: &[Entry], groups: &[Vec<Entry>]) -> (Vec<u8>, Vec<usize>, Vec<Desired>) {
    let mut state = Desired::default();
    first
        .iter()
        .cloned()
        .for_each(|entry| entry.put(&mut state));
    let (mut chain, mut bytes) = (Chain::default(), Vec::new());
    let (schema, generation, entries) = (SCHEMA, 1, Entry::count(&state));
    let head = Head {
        schema,
        generation,
        entries,
    };
    chain.head(&mut bytes, head);
    Entry::all(&state).for_each(|entry| chain.put(&mut bytes, &[entry]));
    let (mut ends, mut states) = (vec![bytes.len()], vec![state.clone()]);
    for group in groups {
        chain.put(&mut bytes, group);
        group
            .iter()
            .cloned()
            .for_each(|entry| entry.put(&mut state));
        ends.push(bytes.len());
        states.push(state.clone());
    }
    (bytes, ends, states)
}

proptest! {
    /// A crash at every byte: what loads is what was written before, and all of it that was
    /// acknowledged.
    #[test]
    fn a_file_that_was_written_up_to_any_byte_is_a_prefix(
        first in prop::collection::vec(entries(), 0..6),
        groups in groups(8),
    ) {
        let (bytes, ends, states) = file(&first, &groups);
        for length in ends[0]..=bytes.len() {
            let acknowledged = ends.iter().filter(|&&end| end <= length).count() - 1;
            // A line that lacks nothing but its newline is whole.
            let whole = ends.iter().filter(|&&end| end <= length + 1).count() - 1;
            let content = lines::read(&bytes[..length]);
            prop_assert_eq!(content.end.is_some(), ends.contains(&length));
            prop_assert_eq!(content.state(), Ok(states[whole].clone()));
            // The length may be on the disk before the blocks are.
            let mut zeros = bytes.clone();
            zeros[length..].fill(0);
            let end = ends.iter().copied().find(|&end| end > length);
            zeros.truncate(end.unwrap_or(length));
            let content = lines::read(&zeros);
            prop_assert_eq!(content.state(), Ok(states[acknowledged].clone()));
        }
    }

    /// Every changed byte is found, in its line.
    #[test]
    fn a_changed_byte_is_found_wherever_it_is(
        first in prop::collection::vec(entries(), 0..6),
        groups in groups(8),
        bit in 0..8_u8,
    ) {
        let (bytes, ends, states) = file(&first, &groups);
        let newline = |&&byte: &&u8| byte == b'\n';
        let lines = bytes.iter().filter(newline).count();
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= 1 << bit;
            let line = bytes[..at].iter().filter(newline).count() + 1;
            let content = if lines::are_in(&changed) {
                lines::read(&changed)
            } else {
                schema1::read(&changed)
            };
            // Without its newline the last line is as one that was cut off, and with a zero as one
            // that was not written.
            let torn = changed[at] == 0 || at + 1 == bytes.len();
            if line == lines && torn && !groups.is_empty() {
                prop_assert_eq!(content.torn, Some(line));
                prop_assert_eq!(content.state(), Ok(states[ends.len() - 2].clone()));
            } else {
                prop_assert_eq!(content.state().unwrap_err().line, line, "byte {}", at);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        // Each waits for the disk some dozens of times.
        cases: ProptestConfig::default().cases.div_ceil(8),
        ..ProptestConfig::default()
    })]

    /// Whatever is saved, with new files and starts in between, is loaded; the last line may be torn.
    #[test]
    fn what_was_acknowledged_is_loaded(
        steps in prop::collection::vec((groups(4), 0..4_u8), 1..6),
        cut in any::<prop::sample::Index>(),
    ) {
        let mut bench = Bench::new();
        let mut store = bench.open();
        let (mut acknowledged, mut before) = (0, bench.state.clone());
        for (groups, then) in steps {
            for group in groups {
                acknowledged = fs::read(bench.path(FILE)).map_or(0, |bytes| bytes.len());
                before = bench.state.clone();
                bench.save(&mut store, &group);
            }
            match then {
                0 => {
                    store.write_anew(&bench.state).unwrap();
                    acknowledged = usize::MAX;
                }
                1 => {
                    drop(store);
                    store = bench.open();
                    acknowledged = usize::MAX;
                }
                _ => {}
            }
        }
        drop(store);
        let bytes = fs::read(bench.path(FILE)).unwrap();
        if (1..bytes.len()).contains(&acknowledged) && bench.state != before {
            let length = acknowledged + cut.index(bytes.len() - acknowledged);
            fs::write(bench.path(FILE), &bytes[..length]).unwrap();
            if length + 1 < bytes.len() {
                bench.state = before;
            }
        }
        drop(bench.open());
        bench.open();
    }
}

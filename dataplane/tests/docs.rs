//! `docs/counters.md` names every counter there is.

use podway_dataplane::verdict::DropReason;
use podway_proto::dataplane::{Books, PortCounters, WorkerCounters};
use podway_xdp_redirect::{PassCause, RefuseCause};

fn fields<T: Default + serde::Serialize>() -> Vec<String> {
    let serde_json::Value::Object(fields) = serde_json::to_value(T::default()).unwrap() else {
        panic!("counters are documents");
    };
    fields.keys().cloned().collect()
}

#[test]
fn every_counter_is_documented() {
    let text = include_str!("../../docs/counters.md");
    let names = DropReason::ALL
        .iter()
        .map(|reason| reason.name().to_owned())
        .chain(
            PassCause::ALL
                .into_iter()
                .map(|cause| cause.name().to_owned()),
        )
        .chain(
            RefuseCause::ALL
                .into_iter()
                .map(|cause| cause.name().to_owned()),
        )
        .chain(fields::<PortCounters>())
        .chain(fields::<WorkerCounters>())
        .chain(fields::<Books>());
    let missing: Vec<_> = names.filter(|name| !text.contains(name.as_str())).collect();
    assert_eq!(missing, Vec::<String>::new());
}

#[test]
fn help_texts_are_those_of_the_documentation() {
    let text = include_str!("../../docs/counters.md");
    for reason in DropReason::ALL {
        let row = format!("| `{}` |", reason.name());
        let mut rows = text.lines().filter(|line| line.starts_with(&row));
        assert!(
            rows.any(|row| row.contains(reason.help())),
            "{}",
            reason.name()
        );
    }
}

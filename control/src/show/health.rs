//! How other nodes are reached, for people.

use std::fmt::Write as _;

use podway_proto::control::{HealthStatus, Layer, PathHealth, PathState, Trouble, UnknownReason};

/// State, round trip, loss and since when, of one path.
pub(super) fn cells(path: Option<&PathHealth>) -> [String; 4] {
    let dash = || "-".to_owned();
    let Some(path) = path else {
        return [dash(), dash(), dash(), dash()];
    };
    let is_reachable = path.state == PathState::Reachable;
    let rtt = path.smoothed_rtt_microseconds.filter(|_| is_reachable);
    let loss = (path.probes > 0).then(|| format!("{}/{}", path.lost, path.probes));
    [
        state(path.state).to_owned(),
        rtt.map_or_else(dash, milliseconds),
        loss.unwrap_or_else(dash),
        duration(path.seconds),
    ]
}

/// The lines of a status.
pub(super) fn of_status(health: Option<&HealthStatus>) -> Vec<String> {
    let Some(health) = health else {
        return vec!["off".to_owned()];
    };
    let unknown = health.nodes - health.reachable - health.unreachable;
    let mut summary = match health.nodes {
        0 => "no other nodes".to_owned(),
        nodes => format!("{} of {nodes} nodes reachable", health.reachable),
    };
    if health.unreachable > 0 {
        let _ = write!(summary, ", {} not", health.unreachable);
    }
    if unknown > 0 {
        let _ = write!(summary, ", {unknown} unknown");
    }
    let _ = write!(
        summary,
        " (UDP port {}, every {} s)",
        health.port, health.interval_seconds
    );
    let mut lines = vec![summary];
    lines.extend(health.troubles.iter().map(trouble));
    lines.extend(health.errors.iter().cloned());
    lines
}

fn trouble(trouble: &Trouble) -> String {
    let layer = match trouble.layer {
        Layer::Underlay => "underlay",
        Layer::Overlay => "overlay",
    };
    let reason = match trouble.state {
        PathState::Unknown { reason } => format!(": {}", explain(reason)),
        _ => String::new(),
    };
    format!(
        "{}: {} by the {layer} for {}{reason}",
        trouble.node,
        state(trouble.state),
        duration(trouble.seconds)
    )
}

fn state(state: PathState) -> &'static str {
    match state {
        PathState::Reachable => "reachable",
        PathState::Unreachable => "unreachable",
        PathState::Unknown { .. } => "unknown",
    }
}

fn explain(reason: UnknownReason) -> &'static str {
    match reason {
        UnknownReason::NotProbedYet => "not probed yet",
        UnknownReason::NoListener => {
            "the node is there and nobody answers; podway-control does not run there, or has \
             health = false"
        }
        UnknownReason::NoAddress => "the two nodes have no addresses of one IP version on it",
        UnknownReason::NoSocket => "this node has no socket for it",
    }
}

fn milliseconds(microseconds: u32) -> String {
    format!("{:.2}ms", f64::from(microseconds) / 1000.0)
}

/// A duration in the largest unit of which there are two.
fn duration(seconds: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(86_400, "d"), (3600, "h"), (60, "m")];
    let unit = UNITS.iter().find(|(unit, _)| seconds >= 2 * unit);
    unit.map_or_else(
        || format!("{seconds}s"),
        |(unit, name)| format!("{}{name}", seconds / unit),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(state: PathState) -> PathHealth {
        PathHealth {
            state,
            seconds: 7300,
            rtt_microseconds: Some(900),
            smoothed_rtt_microseconds: Some(214),
            lost: 3,
            probes: 64,
        }
    }

    #[test]
    fn a_path_is_told_in_four_cells() {
        let reachable = cells(Some(&path(PathState::Reachable)));
        assert_eq!(reachable, ["reachable", "0.21ms", "3/64", "2h"]);
        let unreachable = cells(Some(&path(PathState::Unreachable)));
        assert_eq!(unreachable, ["unreachable", "-", "3/64", "2h"]);
        assert_eq!(cells(None), ["-"; 4]);
    }

    #[test]
    fn durations_have_the_largest_unit_of_which_there_are_two() {
        let all = [0, 119, 120, 7199, 7200, 172_799, 172_800].map(duration);
        assert_eq!(all, ["0s", "119s", "2m", "119m", "2h", "47h", "2d"]);
    }

    #[test]
    fn a_status_says_who_is_not_reached_by_what_since_when() {
        let trouble = |node: &str, layer, state| Trouble {
            node: node.into(),
            layer,
            state,
            seconds: 42,
        };
        let no_listener = PathState::Unknown {
            reason: UnknownReason::NoListener,
        };
        let health = HealthStatus {
            port: 4799,
            interval_seconds: 10,
            nodes: 5,
            reachable: 3,
            unreachable: 1,
            troubles: vec![
                trouble("b", Layer::Overlay, PathState::Unreachable),
                trouble("c", Layer::Underlay, no_listener),
            ],
            errors: vec!["the port is taken".into()],
        };
        assert_eq!(
            of_status(Some(&health)),
            [
                "3 of 5 nodes reachable, 1 not, 1 unknown (UDP port 4799, every 10 s)",
                "b: unreachable by the overlay for 42s",
                "c: unknown by the underlay for 42s: the node is there and nobody answers; \
                 podway-control does not run there, or has health = false",
                "the port is taken",
            ]
        );
        assert_eq!(of_status(None), ["off"]);
    }
}

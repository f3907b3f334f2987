//! Reasons as text.

use std::fmt::Write;

use podway_proto::reasons::{Explanation, Fate};

use super::table::{Table, words};

/// All that is said of `reasons`, one after the other.
pub fn text(reasons: &[Explanation]) -> String {
    let one = |reason: &Explanation| {
        format!(
            "{}: {}\n  where    {}\n  meaning  {}\n  remedy   {}\n",
            reason.name,
            reason.fate,
            words(reason.places),
            reason.meaning,
            reason.remedy
        )
    };
    let all: Vec<String> = reasons.iter().map(one).collect();
    all.join("\n")
}

/// The names with their meanings, by what becomes of the packets.
pub fn list(reasons: &[Explanation]) -> String {
    let mut text = String::new();
    for (fate, header) in [
        (Fate::Drop, "DROPPED"),
        (Fate::Lose, "LOST BEFORE A WORKER HAD IT"),
        (Fate::Refuse, "REFUSED"),
        (Fate::Pass, "PASSED TO THE KERNEL"),
    ] {
        let mut table = Table::new([header, "WHERE", "MEANING"]);
        for reason in reasons.iter().filter(|reason| reason.fate == fate) {
            let cells = [reason.name, &words(reason.places), reason.meaning];
            table.row(cells.map(str::to_owned));
        }
        let gap = if text.is_empty() { "" } else { "\n" };
        let _ = write!(text, "{gap}{}", table.render());
    }
    text
}

#[cfg(test)]
mod tests {
    use podway_proto::reasons::{DropReason, LossCause, PassCause, RefuseCause};

    use super::*;

    #[test]
    fn a_reason_is_told_with_what_to_do() {
        assert_eq!(
            text(&[DropReason::PortGone.explain(), PassCause::NotIp.explain()]),
            "port_gone: dropped by the dataplane\n  \
               where    forward, gather\n  \
               meaning  The port that the packet came from or goes to was detached while it waited.\n  \
               remedy   None is needed when a pod has ended; if it goes on, see `podway port show`.\n\
             \n\
             not_ip: passed to the kernel: nothing is lost\n  \
               where    xdp\n  \
               meaning  neither IPv4 nor IPv6: ARP, VLAN-tagged and other frames\n  \
               remedy   None is needed: the kernel has these packets.\n"
        );
    }

    #[test]
    fn the_list_has_a_table_for_each_fate() {
        let reasons = [
            DropReason::TtlExpired.explain(),
            LossCause::NoFrame.explain(),
            RefuseCause::SpoofedSource.explain(),
            PassCause::NotIp.explain(),
        ];
        assert_eq!(
            list(&reasons),
            "DROPPED      WHERE    MEANING\n\
             ttl_expired  forward  Time to live ran out.\n\
             \n\
             LOST BEFORE A WORKER HAD IT  WHERE  MEANING\n\
             no_frame                     queue  the port's socket had no frame posted for it (AF_XDP)\n\
             \n\
             REFUSED         WHERE  MEANING\n\
             spoofed_source  xdp    pod port: the sender is not the pod by its address, ARP included\n\
             \n\
             PASSED TO THE KERNEL  WHERE  MEANING\n\
             not_ip                xdp    neither IPv4 nor IPv6: ARP, VLAN-tagged and other frames\n"
        );
    }
}

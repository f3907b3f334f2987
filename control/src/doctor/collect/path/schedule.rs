//! Who is asked when: every address of the other nodes, so many at once, within a time that has an end.
//! Below, a node is one address of it.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::super::super::facts::Outcome;
use super::echo::Reply;

/// How long an answer may take before the question is asked again.
const PATIENCE: Duration = Duration::from_millis(400);
const ATTEMPTS: u32 = 3;
/// Answers of both sizes of so many fit the buffer of a socket (212,992 bytes by default) at an MTU of
/// 1500.
const AT_ONCE: usize = 64;
/// After this no node is asked that was not asked before. Nodes that answer take no time to speak of;
/// of those that do not so many are waited for: 64 in each 1.2 s.
const TIME: Duration = Duration::from_secs(10);
/// When the socket is asked again that has no room for what is sent.
const PAUSE: Duration = Duration::from_millis(20);

/// A node that is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Target<'n> {
    pub(super) node: &'n str,
    /// This node's address on the way.
    pub(super) source: IpAddr,
    pub(super) address: IpAddr,
    /// Bytes of a large packet.
    pub(super) size: u32,
}

/// Packets to be sent now.
#[derive(Debug, Clone, Copy)]
pub(super) struct Question<'t> {
    pub(super) target: &'t Target<'t>,
    /// Whether a small one is among them.
    pub(super) small: bool,
}

/// Which nodes are still to be asked, which are waited for, and what became of the others.
#[derive(Debug)]
pub(super) struct Schedule<'t> {
    waiting: std::slice::Iter<'t, Target<'t>>,
    open: BTreeMap<IpAddr, Open<'t>>,
    outcomes: BTreeMap<IpAddr, Outcome>,
    end: Instant,
}

/// A node that is waited for.
#[derive(Debug)]
struct Open<'t> {
    target: &'t Target<'t>,
    /// How often it was asked.
    asked: u32,
    /// When it is asked again or given up.
    due: Instant,
    /// Whether a small packet was answered.
    small: bool,
}

impl<'t> Schedule<'t> {
    pub(super) fn new(targets: &'t [Target<'t>], now: Instant) -> Self {
        Self {
            waiting: targets.iter(),
            open: BTreeMap::new(),
            outcomes: BTreeMap::new(),
            end: now + TIME,
        }
    }

    /// What is to be asked now; [`Schedule::asked`] has to follow each.
    pub(super) fn due(&mut self, now: Instant) -> Vec<Question<'t>> {
        let is_over = now >= self.end;
        let outcomes = &mut self.outcomes;
        self.open.retain(|address, open| {
            let never_asked = is_over && open.asked == 0;
            let goes_on = open.due > now || (open.asked < ATTEMPTS && !never_asked);
            if !goes_on && !never_asked {
                let outcome = match open.small {
                    true => Outcome::Lost,
                    false => Outcome::NoAnswer,
                };
                outcomes.insert(*address, outcome);
            }
            goes_on
        });
        while !is_over && self.open.len() < AT_ONCE {
            let Some(target) = self.waiting.next() else {
                break;
            };
            let open = Open {
                target,
                asked: 0,
                due: now,
                small: false,
            };
            self.open.insert(target.address, open);
        }
        let due = self.open.values().filter(|open| open.due <= now);
        due.map(|open| Question {
            target: open.target,
            small: !open.small,
        })
        .collect()
    }

    /// Whether a node could be asked.
    pub(super) fn asked(&mut self, address: IpAddr, sent: io::Result<()>, now: Instant) {
        let Some(open) = self.open.get_mut(&address) else {
            return;
        };
        match sent {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                // What one node's route or rules refuse says nothing of the others.
                self.end(address, Outcome::NotSent(error.to_string()));
            }
            // Packets that wait for a neighbour fill the socket. The first question has time until
            // the end of all; a later one is a question that was lost.
            Err(_) if open.asked == 0 => open.due = now + PAUSE,
            _ => {
                open.asked += 1;
                open.due = now + PATIENCE;
            }
        }
    }

    /// Notes an answer.
    pub(super) fn heard(&mut self, address: IpAddr, reply: Reply) {
        match (reply, self.open.get_mut(&address)) {
            (_, None) => {}
            (Reply::Small, Some(open)) => open.small = true,
            (Reply::Large, Some(_)) => self.end(address, Outcome::Fits),
            (Reply::TooBig(fits), Some(_)) => self.end(address, Outcome::TooBig(fits)),
        }
    }

    fn end(&mut self, address: IpAddr, outcome: Outcome) {
        self.open.remove(&address);
        self.outcomes.insert(address, outcome);
    }

    /// Whether nobody is waited for or to be asked.
    pub(super) fn is_done(&self, now: Instant) -> bool {
        self.open.is_empty() && (self.waiting.len() == 0 || now >= self.end)
    }

    /// When somebody is due of those that are waited for.
    pub(super) fn next(&self) -> Option<Instant> {
        self.open.values().map(|open| open.due).min()
    }

    /// What became of a node.
    pub(super) fn outcome(&self, address: IpAddr) -> Outcome {
        let outcome = self.outcomes.get(&address).cloned();
        outcome.unwrap_or(Outcome::NotAsked)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    /// Every other one is reached by IPv6.
    fn targets(count: u32) -> Vec<Target<'static>> {
        let target = |n| {
            let address = Ipv4Addr::from_bits(0x0a01_0000 + n);
            let (source, address) = match n % 2 {
                0 => (Ipv4Addr::LOCALHOST.into(), address.into()),
                _ => (Ipv6Addr::LOCALHOST.into(), address.to_ipv6_mapped().into()),
            };
            Target {
                node: "node",
                source,
                address,
                size: 1500,
            }
        };
        (0..count).map(target).collect()
    }

    /// Asks until nobody is left; `answer` says what comes back at once, or that nothing was sent. Gives
    /// what became of all, how long it took, and how many were waited for at once.
    fn ask(
        targets: &[Target<'_>],
        mut answer: impl FnMut(IpAddr) -> io::Result<Option<Reply>>,
    ) -> (Vec<Outcome>, Duration, usize) {
        let begin = Instant::now();
        let (mut now, mut most) = (begin, 0);
        let mut schedule = Schedule::new(targets, begin);
        while !schedule.is_done(now) {
            let mut replies = Vec::new();
            for Question { target, .. } in schedule.due(now) {
                let address = target.address;
                let sent = answer(address).map(|reply| {
                    replies.extend(reply.map(|reply| (address, reply)));
                });
                schedule.asked(address, sent, now);
            }
            most = most.max(schedule.open.len());
            for (address, reply) in replies {
                schedule.heard(address, reply);
            }
            now = schedule.next().map_or(now, |next| next.max(now));
        }
        let outcomes = targets.iter().map(|t| schedule.outcome(t.address));
        (outcomes.collect(), now - begin, most)
    }

    #[test]
    fn any_number_of_nodes_that_answer_takes_no_time() {
        let targets = targets(5000);
        let (outcomes, took, most) = ask(&targets, |_| Ok(Some(Reply::Large)));
        assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Fits));
        assert_eq!((took, most), (Duration::ZERO, AT_ONCE));
    }

    #[test]
    fn nodes_that_are_silent_end_in_time_and_those_behind_them_are_told() {
        let targets = targets(1000);
        let mut times = 0;
        let (outcomes, took, most) = ask(&targets, |_| {
            times += 1;
            Ok(None)
        });
        assert_eq!(most, AT_ONCE);
        assert!(
            took >= TIME && took <= TIME + ATTEMPTS * PATIENCE,
            "{took:?}"
        );
        let asked = outcomes.iter().filter(|o| **o == Outcome::NoAnswer).count();
        // Nine times 1.2 s begin within ten seconds.
        assert_eq!((asked, times), (9 * AT_ONCE, 9 * AT_ONCE * 3));
        let (first, others) = outcomes.split_at(asked);
        assert!(first.iter().all(|outcome| *outcome == Outcome::NoAnswer));
        assert!(others.iter().all(|outcome| *outcome == Outcome::NotAsked));
    }

    #[test]
    fn a_socket_without_room_is_tried_again_until_the_end() {
        let targets = targets(2);
        let full = || io::Error::from(io::ErrorKind::WouldBlock);
        let mut tries = 0;
        let (outcomes, took, _) = ask(&targets, |_| {
            tries += 1;
            if tries < 9 {
                Err(full())
            } else {
                Ok(Some(Reply::Large))
            }
        });
        assert_eq!(outcomes, [Outcome::Fits, Outcome::Fits]);
        assert_eq!(took, 4 * PAUSE);
        let (outcomes, took, _) = ask(&targets, |_| Err(full()));
        assert_eq!(outcomes, [Outcome::NotAsked, Outcome::NotAsked]);
        assert_eq!(took, TIME);
    }

    #[test]
    fn what_comes_back_is_what_became_of_a_node() {
        let targets = targets(5);
        let of = |n: usize| targets[n].address;
        let (outcomes, took, _) = ask(&targets, |address| match address {
            address if address == of(0) => Ok(Some(Reply::TooBig(1400))),
            address if address == of(1) => Ok(Some(Reply::Small)),
            address if address == of(2) => Err(io::Error::other("no")),
            address if address == of(3) => Ok(Some(Reply::Large)),
            _ => Ok(None),
        });
        let expected = [
            Outcome::TooBig(1400),
            Outcome::Lost,
            Outcome::NotSent("no".to_owned()),
            Outcome::Fits,
            Outcome::NoAnswer,
        ];
        assert_eq!(outcomes, expected);
        assert_eq!(took, ATTEMPTS * PATIENCE);
        // Nobody asks again for what was answered, and late answers are nobody's.
        let now = Instant::now();
        let mut schedule = Schedule::new(&targets, now);
        for question in schedule.due(now) {
            assert!(question.small);
            schedule.asked(question.target.address, Ok(()), now);
        }
        schedule.heard(of(1), Reply::Small);
        schedule.heard(of(3), Reply::Large);
        schedule.heard(of(3), Reply::TooBig(1));
        let again = schedule.due(now + PATIENCE);
        let again: Vec<_> = again.iter().map(|q| (q.target.address, q.small)).collect();
        let expected = [(of(0), true), (of(2), true), (of(4), true), (of(1), false)];
        assert_eq!(again, expected);
        assert_eq!(schedule.outcome(of(3)), Outcome::Fits);
    }
}

//! The table in the kernel, by the program `nft` (decision 0014).
//!
//! A transaction of `nft` is in force as a whole or not at all. What it has made is read back and
//! remembered as text; when the kernel tells of a change of the table, it is read again, and made
//! anew if it is another.

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd as _, RawFd};
use std::time::{Duration, Instant};

use super::changes::Changes;
use super::{REMOVAL, Rules, TABLE};
use crate::program;

/// Family of the table (`NFPROTO_INET`, linux/netfilter.h).
const FAMILY: u8 = 1;
/// Who changes the table all the time is answered at most this often.
const CHECK_PERIOD: Duration = Duration::from_millis(200);
/// When something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// What failed is not tried again for this many times as long as it took.
const REST: u32 = 20;
/// How long the main loop waits for `nft`: much longer than many thousand rules take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Keeps the table as it should be.
#[derive(Debug)]
pub struct Keeper {
    /// Tells of changes; `None` while no table is wanted.
    changes: Option<Changes>,
    /// What the table was made from, and how it then read.
    made: Option<(Rules, String)>,
    /// Whether somebody may have changed it.
    doubtful: bool,
    /// Not before this is anything done.
    next: Option<Instant>,
    error: Option<String>,
}

impl Keeper {
    /// Begins to listen to changes if a table is wanted (`on`), and removes what an earlier run
    /// may have left if not.
    ///
    /// # Errors
    /// What the kernel says to opening the socket.
    pub fn start(on: bool) -> io::Result<Self> {
        if !on && let Err(error) = remove() {
            tracing::warn!("{error}");
        }
        Ok(Self {
            changes: on.then(Changes::listen).transpose()?,
            made: None,
            doubtful: false,
            next: None,
            error: None,
        })
    }

    /// What is readable when something has changed.
    pub fn fd(&self) -> Option<RawFd> {
        self.changes.as_ref().map(Changes::as_raw_fd)
    }

    /// When [`Self::keep`] has something to do though nothing came.
    pub fn deadline(&self) -> Option<Instant> {
        let waits = self.doubtful || self.error.is_some();
        self.next.filter(|_| waits)
    }

    /// Takes in what the kernel tells.
    pub fn follow(&mut self) {
        let changes = self.changes.as_ref();
        self.doubtful |= changes.is_some_and(|changes| changes.any(concerns_table));
    }

    /// Makes the table as `rules` say where it is not.
    pub fn keep(&mut self, rules: Option<&Rules>, now: Instant) {
        let Some(rules) = rules else { return };
        let same = self.made.as_ref().is_some_and(|(made, _)| made == rules);
        let asked = self.doubtful || self.error.is_some();
        let waits = self.next.is_some_and(|next| now < next);
        // Rules that have changed wait for nothing but an `nft` that does not work.
        if (same && (!asked || waits)) || (self.error.is_some() && waits) {
            return;
        }
        self.doubtful = false;
        self.next = Some(now + CHECK_PERIOD);
        let result = match &self.made {
            Some((_, text)) if same && self.error.is_none() => match listing() {
                Ok(now) if now == *text => return,
                _ => {
                    tracing::warn!(
                        "somebody has changed the nftables table {TABLE}; making it anew"
                    );
                    make(rules)
                }
            },
            _ => make(rules),
        };
        match result {
            Ok(text) => {
                self.made = Some((rules.clone(), text));
                self.error = None;
            }
            Err(error) => {
                if self.error.as_ref() != Some(&error) {
                    tracing::warn!("{error}");
                }
                self.error = Some(error);
                self.next = Some(now + RETRY.max(now.elapsed() * REST));
            }
        }
    }

    /// Why the rules are not in force, with the remedy.
    pub fn error(&self) -> Option<&str> {
        self.error.as_deref()
    }
}

/// Removes the table, if it is there.
///
/// # Errors
/// A sentence with what `nft` said. Where there is no such program there is no table either.
pub fn remove() -> Result<(), String> {
    match run(&["-f", "-"], REMOVAL) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        result => result
            .map(drop)
            .map_err(|error| format!("cannot remove the nftables table {TABLE}: {error}")),
    }
}

fn make(rules: &Rules) -> Result<String, String> {
    let lack = rules.lack();
    let made = run(&["-f", "-"], &rules.text()).and_then(|_| listing());
    made.map_err(|error| match error.kind() {
        ErrorKind::NotFound => {
            format!("{lack}: there is no program nft; install the package nftables")
        }
        _ => format!("{lack}: {error}"),
    })
}

/// The table as `nft` writes it, without what it has counted.
fn listing() -> io::Result<String> {
    run(&["-s", "list", "table", "inet", TABLE], "")
}

/// Runs `nft` on `input` and gives what it says.
///
/// # Errors
/// What it complains of; `TimedOut` when it has not ended in time. It is killed then.
pub(crate) fn run(args: &[&str], input: &str) -> io::Result<String> {
    program::run("nft", args, input, PATIENCE)
}

/// Whether a datagram tells of our table. Each message of nftables that is about a table or what is
/// in it names the table in its attribute 1, which comes first.
fn concerns_table(mut datagram: &[u8]) -> bool {
    const HEADERS: usize = 20;
    while let Some(header) = datagram.first_chunk::<HEADERS>() {
        let [a, b, c, d, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([a, b, c, d])).unwrap_or(usize::MAX);
        // struct nlmsghdr has 16 bytes; the first of struct nfgenmsg behind it is the family.
        let family = header[16];
        let attribute = datagram.get(HEADERS..).and_then(|rest| {
            let (head, value) = rest.split_first_chunk::<4>()?;
            let number = u16::from_ne_bytes([head[2], head[3]]);
            (number == 1).then(|| value.split(|byte| *byte == 0).next())?
        });
        if family == FAMILY && attribute == Some(TABLE.as_bytes()) {
            return true;
        }
        let next = length.max(HEADERS).next_multiple_of(4);
        datagram = datagram.get(next..).unwrap_or_default();
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(family: u8, table: &str) -> Vec<u8> {
        let mut value = table.as_bytes().to_vec();
        value.push(0);
        let length = u16::try_from(4 + value.len()).unwrap();
        value.resize(value.len().next_multiple_of(4), 0);
        let total = u32::try_from(20 + 4 + value.len()).unwrap();
        let mut bytes = total.to_ne_bytes().to_vec();
        bytes.extend([0; 12]);
        bytes.extend([family, 0, 0, 0]);
        bytes.extend(length.to_ne_bytes());
        bytes.extend(1_u16.to_ne_bytes());
        bytes.extend(value);
        bytes
    }

    #[test]
    fn only_our_table_concerns_us() {
        assert!(concerns_table(&message(1, "podway")));
        assert!(!concerns_table(&message(2, "podway")));
        assert!(!concerns_table(&message(1, "podway2")));
        let second = [message(1, "kube-proxy"), message(1, "podway")].concat();
        assert!(concerns_table(&second));
        for length in 0..20 {
            assert!(!concerns_table(&second[..length]), "{length}");
        }
        assert!(!concerns_table(&[0; 64]));
    }
}

//! iptables that is not built on nftables: which of its tables there are. The kernel tells of no
//! change of them, so they are looked at from time to time.

use std::io::ErrorKind;
use std::time::{Duration, Instant};
use std::{fs, io};

/// How often somebody looks.
const PERIOD: Duration = Duration::from_secs(5);
/// Files with the names of the tables, one a line, and the programs that change these. A kernel
/// without such tables, or without their module so far, has no such file.
const FILES: [(&str, &str); 2] = [
    ("/proc/net/ip_tables_names", "iptables-legacy"),
    ("/proc/net/ip6_tables_names", "ip6tables-legacy"),
];

/// The tables of each of [`FILES`].
#[derive(Debug)]
pub(super) struct Legacy {
    tables: [Tables; 2],
    /// Not before this does anybody look.
    next: Instant,
}

/// What a file says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Tables {
    /// It is not there.
    #[default]
    None,
    /// There are these tables.
    Named(String),
    /// It cannot be read.
    Unknown(String),
}

impl Legacy {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            tables: Default::default(),
            next: now,
        }
    }

    /// When [`Self::look`] has something to do though nothing came. Where there are no files it is
    /// soon enough to look for them when something else happens.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let any = self.tables.iter().any(|tables| *tables != Tables::None);
        any.then_some(self.next)
    }

    /// Looks if it is time to; whether anything is new.
    pub(super) fn look(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + PERIOD;
        let tables = FILES.map(|(path, _)| Tables::of(fs::read_to_string(path)));
        let before = std::mem::replace(&mut self.tables, tables);
        self.tables != before
    }

    /// Whether the addresses of what arrives may be translated.
    pub(super) fn translates(&self) -> bool {
        self.tables.iter().any(|tables| match tables {
            Tables::None => false,
            Tables::Named(_) => tables.has("nat"),
            // Who asks conntrack in vain loses some speed, who does not ask it breaks services.
            Tables::Unknown(_) => true,
        })
    }

    /// Whether connections over IPv4 may be tracked: a rule of any table may ask for it.
    pub(super) fn may_track(&self) -> bool {
        let [four, _] = &self.tables;
        match four {
            Tables::None => false,
            Tables::Named(names) => !names.is_empty(),
            Tables::Unknown(_) => true,
        }
    }

    /// What cannot be seen from here.
    pub(super) fn hints(&self) -> impl Iterator<Item = String> + '_ {
        let each = FILES.iter().zip(&self.tables);
        each.filter_map(|((path, program), tables)| match tables {
            Tables::Unknown(error) => Some(format!(
                "whether rules of {program} translate or drop pods' packets is not known: cannot \
                 read {path}: {error}; run podway-control as root"
            )),
            _ if tables.has("filter") => Some(format!(
                "{program} has a filter table, which control cannot read: if its chain FORWARD \
                 drops pods' packets (see {program} -S FORWARD), the kernel cannot carry them when \
                 the dataplane is away"
            )),
            _ => None,
        })
    }
}

impl Tables {
    fn of(read: io::Result<String>) -> Self {
        match read {
            Ok(names) => Self::Named(names),
            Err(error) if error.kind() == ErrorKind::NotFound => Self::None,
            Err(error) => Self::Unknown(error.to_string()),
        }
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Self::Named(names) => names.lines().any(|line| line == name),
            Self::None | Self::Unknown(_) => false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_tell_what_their_rules_may_do() {
        let legacy = |four: io::Result<&str>, six: io::Result<&str>| Legacy {
            tables: [four, six].map(|read| Tables::of(read.map(str::to_owned))),
            next: Instant::now(),
        };
        let none = || Err(ErrorKind::NotFound.into());
        let hints = |legacy: &Legacy| legacy.hints().count();

        let nothing = legacy(none(), none());
        assert_eq!(nothing.deadline(), None);
        assert!(!nothing.translates());
        assert_eq!(hints(&nothing), 0);

        let empty = legacy(none(), Ok(""));
        assert_eq!(empty.deadline(), Some(empty.next));
        assert!(!empty.translates() && !empty.may_track());
        assert_eq!(hints(&empty), 0);

        for translating in [
            legacy(Ok("mangle\nnat\n"), none()),
            legacy(Ok(""), Ok("nat\n")),
        ] {
            assert!(translating.translates());
            assert_eq!(hints(&translating), 0);
        }
        let filter = legacy(Ok("filter\n"), Ok("filter\nraw\n"));
        assert!(!filter.translates() && filter.may_track());
        assert!(!legacy(none(), Ok("filter\n")).may_track(), "of IPv6 alone");
        let programs: Vec<String> = filter
            .hints()
            .map(|hint| hint.split(' ').next().unwrap().to_owned())
            .collect();
        assert_eq!(programs, ["iptables-legacy", "ip6tables-legacy"]);

        let unknown = legacy(Err(ErrorKind::PermissionDenied.into()), none());
        assert!(unknown.translates() && unknown.may_track());
        assert!(
            unknown
                .hints()
                .next()
                .unwrap()
                .contains("permission denied")
        );
    }

    #[test]
    fn files_are_read_every_few_seconds_at_most() {
        let begin = Instant::now();
        let mut legacy = Legacy::new(begin);
        let is_there = |path: &str| std::path::Path::new(path).exists();
        let any = FILES.iter().any(|(path, _)| is_there(path));
        assert_eq!(legacy.look(begin), any);
        assert_eq!(legacy.deadline(), any.then_some(begin + PERIOD));
        legacy.tables = Default::default();
        assert!(!legacy.look(begin + PERIOD / 2));
        assert_eq!(legacy.look(begin + PERIOD), any);
        assert!(!legacy.look(begin + 2 * PERIOD), "nothing new");
    }
}

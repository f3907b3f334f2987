//! What can go wrong between this process and the kernel's maps, with the remedy.

use std::io;

/// Why loading or a change of a map failed. The text names the thing and, where one is known, the
/// remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel did not take the program or its maps.
    #[error("cannot load the XDP program: {source}; {remedy}{}", said(.log))]
    Load {
        /// What to change.
        remedy: &'static str,
        /// The last lines that libbpf printed; may be empty.
        log: String,
        /// The kernel's or libbpf's error.
        source: libbpf_rs::Error,
    },
    /// The memory of a map could not be mapped.
    #[error("cannot map the memory of the BPF map '{map}': {source}")]
    Memory {
        /// The map.
        map: &'static str,
        /// The kernel's error.
        source: io::Error,
    },
    /// A ring for packets could not be made.
    #[error("cannot make a packet ring of {size} bytes: {source}")]
    Ring {
        /// Its size in bytes.
        size: u32,
        /// The kernel's error.
        source: io::Error,
    },
    /// A map has no room for another entry.
    #[error("the BPF map '{map}' is full ({limit} entries) and cannot take {key}")]
    Full {
        /// The map.
        map: &'static str,
        /// How many entries it has.
        limit: u32,
        /// The entry.
        key: String,
    },
    /// The kernel refused another operation on a map.
    #[error("cannot {action} {key} in the BPF map '{map}': {source}")]
    Map {
        /// The map.
        map: &'static str,
        /// What was tried.
        action: &'static str,
        /// The entry.
        key: String,
        /// The kernel's error.
        source: libbpf_rs::Error,
    },
    /// The program that looks up for user space did not run.
    #[error("cannot run the BPF program 'podway_ask': {0}")]
    Ask(io::Error),
    /// A number is beyond what the program's maps hold.
    #[error("{what} {value} is out of range; the largest is {largest}")]
    OutOfRange {
        /// What the number is.
        what: &'static str,
        /// The number.
        value: u64,
        /// The largest allowed one.
        largest: u64,
    },
}

fn said(log: &str) -> String {
    if log.is_empty() {
        String::new()
    } else {
        format!("; libbpf says: {log}")
    }
}

/// `value`, if it is not above `largest`.
pub(crate) fn in_range(what: &'static str, value: u64, largest: u64) -> Result<(), Error> {
    if value <= largest {
        Ok(())
    } else {
        Err(Error::OutOfRange {
            what,
            value,
            largest,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_largest_value_is_in_range_and_the_next_is_named() {
        assert!(in_range("worker", 63, 63).is_ok());
        let text = in_range("worker", 64, 63).unwrap_err().to_string();
        assert_eq!(text, "worker 64 is out of range; the largest is 63");
    }

    #[test]
    fn a_load_error_names_the_remedy_and_what_libbpf_said() {
        let mut error = Error::Load {
            remedy: "run as root",
            log: String::new(),
            source: libbpf_rs::Error::from_raw_os_error(libc::EPERM),
        };
        let short = error.to_string();
        assert!(
            short.starts_with("cannot load the XDP program: "),
            "{short}"
        );
        assert!(short.ends_with("; run as root"), "{short}");
        if let Error::Load { log, .. } = &mut error {
            *log = "no such thing".to_owned();
        }
        assert_eq!(
            error.to_string(),
            format!("{short}; libbpf says: no such thing")
        );
    }
}

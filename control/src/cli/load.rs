//! `podway route load`: routes by the thousand, from a file or from standard input.

use std::collections::BTreeMap;
use std::io::{self, IsTerminal, Read, Write};
use std::path::Path;

use ipnet::IpNet;
use podway_proto::client::{BulkOptions, Client};
use podway_proto::control::{Response, RouteSpec};
use podway_proto::entries::{Entries, EntryKey, RefusedEntry};

use super::Failure;
use super::route::ways;

/// Complaints that are shown; the first ones say what is wrong with the others, mostly.
const SHOWN: usize = 20;

/// Loads the routes of `file` into the daemon: all of them, or none.
pub(super) fn load(client: &mut Client, file: &Path, dry_run: bool) -> Result<Response, Failure> {
    let text = read(file)?;
    let (entries, lines) = parse(&text).map_err(|complaints| {
        Failure::Usage(format!(
            "nothing is loaded: {} is no list of routes:\n{}",
            name(file),
            some(&complaints)
        ))
    })?;
    let options = BulkOptions {
        dry_run,
        ..BulkOptions::default()
    };
    match bulk(client, options, &entries)? {
        Ok(done) => Ok(done),
        Err(refused) => {
            let complaint = |refused: &RefusedEntry| {
                let line = match &refused.entry {
                    EntryKey::Route { prefix } => lines.get(prefix),
                    _ => None,
                };
                let place = line.map_or_else(String::new, |line| format!("line {line}: "));
                format!("{place}{}: {}", refused.entry, refused.error)
            };
            let complaints: Vec<String> = refused.iter().map(complaint).collect();
            let what = format!("nothing is loaded from {}", name(file));
            Err(refusal(what, &complaints, refused))
        }
    }
}

/// Hands `entries` over, with progress on standard error if that is a terminal.
pub(super) fn bulk(
    client: &mut Client,
    options: BulkOptions,
    entries: &Entries,
) -> Result<Result<Response, Vec<RefusedEntry>>, Failure> {
    // Back to the start of the line, and clear it.
    const AGAIN: &str = "\r\x1b[K";
    let mut terminal = Some(io::stderr()).filter(IsTerminal::is_terminal);
    let all = entries.len();
    let answer = client.bulk(options, entries, |held| {
        if let Some(terminal) = &mut terminal {
            let then = if held == all {
                ", putting them into force"
            } else {
                ""
            };
            // Progress that nobody can see is no failure.
            let _ = write!(terminal, "{AGAIN}{held} of {all} entries handed over{then}");
        }
    });
    if let Some(terminal) = &mut terminal {
        let _ = write!(terminal, "{AGAIN}");
    }
    Ok(answer?.map(Response::BulkDone))
}

/// A refusal for which nothing has changed.
pub(super) fn refusal(what: String, complaints: &[String], refused: Vec<RefusedEntry>) -> Failure {
    Failure::Entries {
        what,
        complaints: some(complaints),
        refused,
    }
}

/// The text of `file`, or of standard input for `-`.
pub(super) fn read(file: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if file == Path::new("-") {
        io::stdin().lock().read_to_string(&mut text).map(drop)
    } else {
        std::fs::read_to_string(file).map(|content| text = content)
    };
    read.map_err(|error| unreadable(file, &error))?;
    Ok(text)
}

/// That a file cannot be read.
pub(super) fn unreadable(file: &Path, error: &io::Error) -> Failure {
    Failure::Usage(format!("cannot read {}: {error}", name(file)))
}

pub(super) fn name(file: &Path) -> String {
    if file == Path::new("-") {
        "standard input".to_owned()
    } else {
        file.display().to_string()
    }
}

fn some(complaints: &[String]) -> String {
    let mut text = complaints[..complaints.len().min(SHOWN)].join("\n");
    if complaints.len() > SHOWN {
        text += &format!("\nand {} more", complaints.len() - SHOWN);
    }
    text
}

/// The routes of `text`, one a line as `route add` takes them, and the line of each, from 1. Empty
/// lines and what follows a `#` say nothing. A complaint for each line that is wrong.
fn parse(text: &str) -> Result<(Entries, BTreeMap<IpNet, usize>), Vec<String>> {
    let mut routes: Vec<RouteSpec> = Vec::new();
    let mut lines = BTreeMap::new();
    let mut complaints = Vec::new();
    for (number, line) in (1..).zip(text.lines()) {
        let words = line.split('#').next().unwrap_or_default();
        let words: Vec<&str> = words.split_whitespace().collect();
        if words.is_empty() {
            continue;
        }
        match route(&words) {
            Ok(route) => match lines.insert(route.prefix, number) {
                None => routes.push(route),
                Some(first) => complaints.push(format!(
                    "line {number}: {} is in line {first} already",
                    route.prefix
                )),
            },
            Err(complaint) => complaints.push(format!("line {number}: {complaint}")),
        }
    }
    if complaints.is_empty() {
        let entries = Entries {
            routes,
            ..Entries::default()
        };
        Ok((entries, lines))
    } else {
        Err(complaints)
    }
}

fn route(words: &[&str]) -> Result<RouteSpec, String> {
    let (prefix, words) = words.split_first().unwrap_or((&"", &[]));
    let prefix = prefix
        .parse()
        .map_err(|_| format!("'{prefix}' is no prefix such as 10.9.0.0/16"))?;
    let via = ways(words)?;
    Ok(RouteSpec { prefix, via })
}

#[cfg(test)]
mod tests {
    use podway_proto::control::ViaSpec;

    use super::*;

    #[test]
    fn routes_are_read_as_route_add_takes_them() {
        let text = "# all\n10.8.0.0/16 via node-b\n\n  10.9.0.0/16\tvia 192.168.1.9 dev eth0 # one\n\
             10.10.0.0/16 via node-b via 192.168.1.9 dev eth0\n";
        let (entries, lines) = parse(text).unwrap();
        let gateway = ViaSpec::Gateway {
            address: "192.168.1.9".parse().unwrap(),
            interface: Some("eth0".into()),
        };
        let node = ViaSpec::Node {
            node: "node-b".into(),
            vni: None,
        };
        let prefixes = ["10.8.0.0/16", "10.9.0.0/16", "10.10.0.0/16"].map(|p| p.parse().unwrap());
        let both = ViaSpec::Multipath {
            members: vec![node.clone(), gateway.clone()],
        };
        let expected = [node, gateway, both];
        let expected = prefixes.into_iter().zip(expected);
        let expected: Vec<_> = expected
            .map(|(prefix, via)| RouteSpec { prefix, via })
            .collect();
        assert_eq!(entries.routes, expected);
        assert_eq!(
            lines,
            BTreeMap::from([(prefixes[0], 2), (prefixes[1], 4), (prefixes[2], 5)])
        );
        assert_eq!(parse("").unwrap().0, Entries::default());
    }

    #[test]
    fn every_wrong_line_is_named() {
        let text = "10.8.0.0/16 via b\n10.8.0.0/33 via b\n10.9.0.0/16 by b\n10.8.0.0/16 via c\n\
                    10.7.0.0/16 via b dev eth0\n";
        let complaints = parse(text).unwrap_err();
        assert_eq!(
            complaints[..3],
            [
                "line 2: '10.8.0.0/33' is no prefix such as 10.9.0.0/16",
                "line 3: write PREFIX via NODE [vni VNI] or via IP [dev IF], and [via ...] for each further \
                 next hop",
                "line 4: 10.8.0.0/16 is in line 1 already",
            ]
        );
        assert!(complaints[3].starts_with("line 5: 'dev' goes with the address"));
        assert_eq!(complaints.len(), 4);
    }

    #[test]
    fn of_many_complaints_the_first_are_shown() {
        let all: Vec<String> = (0..SHOWN + 2).map(|n| n.to_string()).collect();
        assert!(some(&all).ends_with("\n19\nand 2 more"));
        assert_eq!(some(&all[..2]), "0\n1");
    }
}

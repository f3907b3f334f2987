//! `podway explain`: the reasons by their names.

use podway_proto::codec;
use podway_proto::reasons::{self, Explanation};
use serde::Serialize;

use super::Failure;
use crate::show;

/// What is said of the reason of that name, or the list of all, as text or as a document.
pub(super) fn explain(name: Option<&str>, json: bool) -> Result<Vec<u8>, Failure> {
    #[derive(Serialize)]
    struct Document {
        response: &'static str,
        reasons: Vec<Explanation>,
    }
    let reasons: Vec<Explanation> = match name {
        Some(name) => named(name)?,
        None => reasons::all().collect(),
    };
    Ok(match (json, name) {
        (true, _) => codec::encode(&Document {
            response: "reasons",
            reasons,
        }),
        (false, Some(_)) => show::explain::text(&reasons).into_bytes(),
        (false, None) => show::explain::list(&reasons).into_bytes(),
    })
}

/// The reasons of a name: a drop reason and a cause to pass may share one.
fn named(name: &str) -> Result<Vec<Explanation>, Failure> {
    let wanted = name.to_ascii_lowercase().replace('-', "_");
    let found: Vec<_> = reasons::all().filter(|r| r.name == wanted).collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let near = near(&wanted);
    let meant = match near.as_slice() {
        [] => "podway explain lists all".to_owned(),
        names => format!("did you mean {}?", names.join(", ")),
    };
    Err(Failure::NotFound(format!(
        "there is no reason {name}; {meant}"
    )))
}

/// Names like `wanted`: a few letters apart, or one within the other; the nearest first.
fn near(wanted: &str) -> Vec<&'static str> {
    let mut found: Vec<(usize, &'static str)> = reasons::all()
        .filter_map(|reason| {
            let name = reason.name;
            let distance = distance(wanted, name);
            let within = wanted.len() >= 3 && (name.contains(wanted) || wanted.contains(name));
            (within || distance <= name.len() / 3).then_some((distance, name))
        })
        .collect();
    found.sort_unstable();
    let mut names: Vec<_> = found.into_iter().map(|(_, name)| name).collect();
    names.dedup();
    names.truncate(5);
    names
}

/// Letters to be put in, left out or changed to make one word of the other (Levenshtein).
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in (1..).zip(a.chars()) {
        let mut corner = i - 1;
        let mut left = i;
        if let Some(first) = row.first_mut() {
            *first = i;
        }
        for (above, to) in row.iter_mut().skip(1).zip(b.chars()) {
            let changed = corner + usize::from(from != to);
            corner = *above;
            left = changed.min(corner + 1).min(left + 1);
            *above = left;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(name: Option<&str>, json: bool) -> String {
        String::from_utf8(explain(name, json).unwrap()).unwrap()
    }

    #[test]
    fn words_are_told_apart_by_letters() {
        for (a, b, letters) in [
            ("", "", 0),
            ("", "abc", 3),
            ("abc", "", 3),
            ("no_route", "no_route", 0),
            ("no_rout", "no_route", 1),
            ("kitten", "sitting", 3),
        ] {
            assert_eq!(distance(a, b), letters, "{a} {b}");
        }
    }

    #[test]
    fn a_name_that_is_none_has_names_like_it() {
        let refused = |name| {
            let failure = explain(Some(name), false).unwrap_err();
            assert_eq!(failure.exit_code(), 3);
            failure.to_string()
        };
        assert_eq!(
            refused("no_rout"),
            "there is no reason no_rout; did you mean no_route?"
        );
        assert_eq!(
            refused("vtep"),
            "there is no reason vtep; did you mean unknown_vtep?"
        );
        assert_eq!(
            refused("xyzzyxyzzy"),
            "there is no reason xyzzyxyzzy; podway explain lists all"
        );
        assert!(near("ipv4").len() == 5);
    }

    #[test]
    fn every_reason_is_listed_and_explained() {
        let list = said(None, false);
        for reason in reasons::all() {
            assert!(list.contains(reason.name), "{}", reason.name);
            let text = said(Some(reason.name), false);
            assert!(text.contains(reason.meaning) && text.contains(reason.remedy));
            // Written as other tools write names.
            let other = reason.name.to_uppercase().replace('_', "-");
            assert_eq!(said(Some(&other), false), text);
        }
    }

    #[test]
    fn a_document_has_all_that_is_said() {
        let found: serde_json::Value =
            serde_json::from_str(&said(Some("egress_refused"), true)).unwrap();
        let reason = reasons::DropReason::EgressRefused.explain();
        let expected = serde_json::json!({
            "response": "reasons",
            "reasons": [{
                "name": "egress_refused",
                "fate": "drop",
                "places": ["send"],
                "meaning": reason.meaning,
                "remedy": reason.remedy,
            }],
        });
        assert_eq!(found, expected);
        let all: serde_json::Value = serde_json::from_str(&said(None, true)).unwrap();
        let listed = all["reasons"].as_array().unwrap().len();
        assert_eq!(listed, reasons::all().count());
    }
}

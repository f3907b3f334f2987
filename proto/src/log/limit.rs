//! The same message of the same place, so many times a second.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Metadata};

/// Lines of one message in a `WINDOW`.
pub const MOST: u32 = 10;
/// What they are counted over.
pub(super) const WINDOW: Duration = Duration::from_secs(1);
/// Messages that are counted at once; others go by uncounted.
const PLACES: usize = 1024;

/// Counts messages by place and words.
#[derive(Debug, Default)]
pub(super) struct Limiter {
    counted: HashMap<(Identifier, String), Counted>,
    /// When the first of the windows ends.
    due: Option<Instant>,
    /// When the first of those ends in which something was left out.
    owed: Option<Instant>,
}

#[derive(Debug)]
struct Counted {
    begin: Instant,
    heard: u32,
    silenced: u32,
    target: &'static str,
}

/// What becomes of an event.
#[derive(Debug, Default)]
pub(super) struct Admission {
    /// Whether it is left out.
    pub(super) refused: bool,
    /// What was left out in windows that have ended.
    pub(super) silenced: Vec<Silenced>,
}

/// Lines that were left out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Silenced {
    pub(super) target: &'static str,
    pub(super) text: String,
    pub(super) count: u32,
}

impl Limiter {
    /// Counts an event. What was left out in windows that have ended is told with it.
    pub(super) fn admit(&mut self, event: &Event<'_>, now: Instant) -> Admission {
        let mut text = Text::default();
        event.record(&mut text);
        self.count(event.metadata(), text.0, now)
    }

    fn count(&mut self, metadata: &Metadata<'static>, text: String, now: Instant) -> Admission {
        let silenced = self.ended(now);
        let full = self.counted.len() >= PLACES;
        let refused = match self.counted.entry((metadata.callsite(), text)) {
            Entry::Occupied(entry) => {
                let counted = entry.into_mut();
                let refused = counted.heard >= MOST;
                if refused {
                    counted.silenced += 1;
                    let end = counted.begin + WINDOW;
                    self.owed = Some(self.owed.map_or(end, |owed| owed.min(end)));
                } else {
                    counted.heard += 1;
                }
                refused
            }
            Entry::Vacant(entry) => {
                if !full {
                    entry.insert(Counted {
                        begin: now,
                        heard: 1,
                        silenced: 0,
                        target: metadata.target(),
                    });
                    self.due.get_or_insert(now + WINDOW);
                }
                false
            }
        };
        Admission { refused, silenced }
    }

    /// Forgets the windows that have ended; what was left out in them.
    pub(super) fn ended(&mut self, now: Instant) -> Vec<Silenced> {
        if self.due.is_none_or(|due| now < due) {
            return Vec::new();
        }
        self.forget(|begin| now >= begin + WINDOW)
    }

    /// Forgets all windows; what was left out in them.
    pub(super) fn all(&mut self) -> Vec<Silenced> {
        self.forget(|_| true)
    }

    /// When [`Limiter::ended`] has something to tell.
    pub(super) fn owed(&self) -> Option<Instant> {
        self.owed
    }

    /// Forgets the windows of which `is_over` says so by their begin.
    fn forget(&mut self, is_over: impl Fn(Instant) -> bool) -> Vec<Silenced> {
        let mut silenced = Vec::new();
        self.counted.retain(|(_, text), counted| {
            let goes_on = !is_over(counted.begin);
            if !goes_on && counted.silenced > 0 {
                silenced.push(Silenced {
                    target: counted.target,
                    text: text.clone(),
                    count: counted.silenced,
                });
            }
            goes_on
        });
        let end = |counted: &Counted| counted.begin + WINDOW;
        self.due = self.counted.values().map(end).min();
        let owing = self.counted.values().filter(|counted| counted.silenced > 0);
        self.owed = owing.map(end).min();
        silenced
    }
}

/// The words of an event: its message and then its fields.
#[derive(Debug, Default)]
struct Text(String);

impl Visit for Text {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let rest = std::mem::take(&mut self.0);
            let _ = write!(self.0, "{value:?}{rest}");
        } else {
            let _ = write!(self.0, " {}={value:?}", field.name());
        }
    }
}

#[cfg(test)]
mod tests {
    use tracing::Callsite as _;

    use super::*;

    fn metadata() -> &'static Metadata<'static> {
        tracing::callsite! {
            name: "place",
            kind: tracing::metadata::Kind::EVENT,
            fields: message
        }
        .metadata()
    }

    #[test]
    fn windows_follow_each_other() {
        let (mut limiter, begin) = (Limiter::default(), Instant::now());
        let place = metadata();
        let mut refused = |words: &str, at| limiter.count(place, words.to_owned(), at).refused;
        for _ in 0..MOST {
            assert!(!refused("a", begin));
        }
        assert!(refused("a", begin) && refused("a", begin));
        assert!(!refused("b", begin), "other words are another message");
        let later = begin + WINDOW;
        let told = limiter.count(place, "a".to_owned(), later);
        assert!(!told.refused);
        let [silenced] = told.silenced.as_slice() else {
            panic!("{told:?}");
        };
        assert_eq!((silenced.text.as_str(), silenced.count), ("a", 2));
        let again = limiter.count(place, "a".to_owned(), later + WINDOW);
        assert_eq!(again.silenced, []);
    }

    #[test]
    fn what_is_owed_is_told_when_its_window_ends() {
        let (mut limiter, begin) = (Limiter::default(), Instant::now());
        let place = metadata();
        let moment = Duration::from_millis(1);
        limiter.count(place, "alone".to_owned(), begin);
        assert_eq!(limiter.owed(), None, "nothing was left out");
        for words in ["a", "b"] {
            let at = begin + if words == "a" { 2 * moment } else { moment };
            for _ in 0..MOST + 3 {
                limiter.count(place, words.to_owned(), at);
            }
        }
        let first = begin + moment + WINDOW;
        assert_eq!(limiter.owed(), Some(first), "that of b");
        assert_eq!(limiter.ended(first - Duration::from_nanos(1)), []);
        let silenced = |text: &str| Silenced {
            target: place.target(),
            text: text.to_owned(),
            count: 3,
        };
        assert_eq!(limiter.ended(first), [silenced("b")]);
        assert_eq!(limiter.owed(), Some(first + moment));
        assert_eq!(limiter.all(), [silenced("a")], "its window has not ended");
        assert_eq!((limiter.owed(), limiter.due), (None, None));
    }

    #[test]
    fn messages_without_end_take_no_room_without_end() {
        let (mut limiter, begin) = (Limiter::default(), Instant::now());
        let place = metadata();
        for number in 0..2 * PLACES {
            assert!(!limiter.count(place, number.to_string(), begin).refused);
        }
        assert_eq!(limiter.counted.len(), PLACES);
        limiter.count(place, "x".to_owned(), begin + WINDOW);
        assert_eq!(limiter.counted.len(), 1);
    }
}

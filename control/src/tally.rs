//! How often clients have asked for what, and what became of it: for the metrics.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use podway_proto::ErrorCode;
use podway_proto::control::Response;

/// What a line asked for that is no request.
pub const NO_REQUEST: &str = "none";

/// Requests since the start. The main loop counts, the thread of the metrics reads; there are as many
/// numbers as kinds of requests and of refusals.
#[derive(Debug, Clone, Default)]
pub struct Tally(Arc<Mutex<HashMap<Asked, u64>>>);

/// What was asked for, and the code with which it was refused, if it was.
type Asked = (&'static str, Option<ErrorCode>);

impl Tally {
    /// Counts a request by its name and what it was answered.
    pub fn answered(&self, name: &'static str, response: &Response) {
        let code = match response {
            Response::Error(error) => Some(error.code),
            Response::BulkRefused { .. } => Some(ErrorCode::Invalid),
            _ => None,
        };
        self.count(name, code);
    }

    /// Counts a request by its name and why it was refused.
    pub fn count(&self, name: &'static str, refused: Option<ErrorCode>) {
        *self.numbers().entry((name, refused)).or_default() += 1;
    }

    /// All numbers that are not 0, in the order of names and codes: the name of the request, the code
    /// or `ok`, and how many.
    pub fn all(&self) -> Vec<(&'static str, String, u64)> {
        let numbers = self.numbers();
        let named = numbers.iter().map(|((name, refused), count)| {
            let code = refused.map_or_else(|| "ok".to_owned(), code);
            (*name, code, *count)
        });
        let mut all: Vec<_> = named.collect();
        drop(numbers);
        all.sort();
        all
    }

    fn numbers(&self) -> MutexGuard<'_, HashMap<Asked, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A code as in JSON.
fn code(code: ErrorCode) -> String {
    let name = serde_json::to_value(code).unwrap_or_default();
    name.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use podway_proto::ErrorBody;

    use super::*;

    #[test]
    fn requests_are_counted_by_name_and_code() {
        let tally = Tally::default();
        let refused = ErrorBody::new(ErrorCode::NotFound, "no");
        tally.answered("node-del", &Response::Error(refused));
        for _ in 0..2 {
            tally.answered("node-del", &Response::Done);
        }
        let nothing = Response::BulkRefused {
            refused: Vec::new(),
        };
        tally.answered("bulk-end", &nothing);
        tally.clone().count(NO_REQUEST, Some(ErrorCode::BadRequest));
        let named = |name, code: &str, count| (name, code.to_owned(), count);
        assert_eq!(
            tally.all(),
            [
                named("bulk-end", "invalid", 1),
                named("node-del", "not-found", 1),
                named("node-del", "ok", 2),
                named("none", "bad-request", 1),
            ]
        );
    }
}

//! Entries by the thousand: too long for one line, handed over in parts.

use serde::Serialize;

use super::{Client, ClientError};
use crate::codec::{MAX_LINE, encode};
use crate::control::{Request, Response};
use crate::entries::{Difference, Entries, RefusedEntry};

/// Bytes of the entries of one part. It is handled as a whole before anybody else is served, so it
/// is well below the limit of a line: some four thousand routes.
const PART: usize = MAX_LINE / 4;

/// How a bulk is to be done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BulkOptions {
    /// What is not in the bulk is removed.
    pub replace: bool,
    /// Nothing is changed; the answer is the one that the bulk would have.
    pub dry_run: bool,
}

impl Client {
    /// All that was told.
    ///
    /// # Errors
    /// [`ClientError`].
    pub fn export(&mut self) -> Result<Entries, ClientError> {
        match self.call(&Request::Export)? {
            Response::Entries(entries) => Ok(entries),
            _ => Err(self.nonsense("export was answered by something else")),
        }
    }

    /// Puts `entries` into force, all of them or none: then those that stand in the way are named.
    /// The difference is what has changed, or would have. `progress` is called with the number of
    /// entries that the daemon holds, which is all of them before any is in force.
    ///
    /// # Errors
    /// [`ClientError`]: with [`Refused`](ClientError::Refused) nothing has changed. After another
    /// one it may not be known whether the entries are in force; they are all or not at all.
    pub fn bulk(
        &mut self,
        options: BulkOptions,
        entries: &Entries,
        mut progress: impl FnMut(usize),
    ) -> Result<Result<Difference, Vec<RefusedEntry>>, ClientError> {
        let BulkOptions { replace, dry_run } = options;
        self.call(&Request::BulkBegin { replace, dry_run })?;
        let none = Entries::default;
        let nodes = parts(&entries.nodes, PART).map(|nodes| Entries { nodes, ..none() });
        let routes = parts(&entries.routes, PART).map(|routes| Entries { routes, ..none() });
        let ports = parts(&entries.ports, PART).map(|ports| Entries { ports, ..none() });
        let mut held = 0;
        for part in nodes.chain(routes).chain(ports) {
            held += part.len();
            self.call(&Request::BulkPart(part))?;
            progress(held);
        }
        match self.call(&Request::BulkEnd)? {
            Response::BulkDone(difference) => Ok(Ok(difference)),
            Response::BulkRefused { refused } => Ok(Err(refused)),
            _ => Err(self.nonsense("bulk-end was answered by something else")),
        }
    }
}

/// `items` in parts of up to `limit` bytes as JSON, or of one item that is longer.
fn parts<T: Serialize + Clone>(items: &[T], limit: usize) -> impl Iterator<Item = Vec<T>> {
    let mut rest = items;
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let fits = |item: &&T| {
            // With the newline that `encode` adds in place of a comma.
            bytes += encode(item).len();
            bytes <= limit
        };
        let count = rest.iter().take_while(fits).count().max(1);
        let (part, behind) = rest.split_at_checked(count)?;
        rest = behind;
        Some(part.to_vec())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_in_order_and_within_the_limit() {
        let items = ["aa", "bb", "cc", "a long one", "dd"];
        // Each short one takes five bytes: two quotes, two letters, a comma.
        let in_parts = |limit| parts(&items, limit).collect::<Vec<_>>();
        let expected = [vec!["aa", "bb"], vec!["cc"], vec!["a long one"], vec!["dd"]];
        assert_eq!(in_parts(10), expected);
        assert_eq!(in_parts(1000), [items.to_vec()]);
        assert_eq!(parts::<u8>(&[], 10).count(), 0);
    }
}

//! The primitives of concurrent code that is model-checked: those of loom when the crate is built
//! with the feature `loom`, else the real ones.

#[cfg(all(test, feature = "loom"))]
pub(crate) use loom::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};
#[cfg(not(all(test, feature = "loom")))]
pub(crate) use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

/// A place for one `Arc` that threads swap without waiting.
#[cfg(not(all(test, feature = "loom")))]
pub(crate) struct Slot<T>(crossbeam::atomic::AtomicCell<Option<Arc<T>>>);

#[cfg(not(all(test, feature = "loom")))]
impl<T> Slot<T> {
    /// An `AtomicCell` that does not fit in one atomic word would take a global lock.
    const ONE_WORD: () = assert!(crossbeam::atomic::AtomicCell::<Option<Arc<T>>>::is_lock_free());

    pub(crate) fn new() -> Self {
        let () = Self::ONE_WORD;
        Self(crossbeam::atomic::AtomicCell::new(None))
    }

    /// Puts `value` in and returns what was there; one atomic exchange, acquire and release.
    pub(crate) fn swap(&self, value: Option<Arc<T>>) -> Option<Arc<T>> {
        self.0.swap(value)
    }
}

/// The model of the slot above: loom cannot see into crossbeam. A mutex orders what two swaps of
/// the same slot order, and no more.
#[cfg(all(test, feature = "loom"))]
pub(crate) struct Slot<T>(loom::sync::Mutex<Option<Arc<T>>>);

#[cfg(all(test, feature = "loom"))]
impl<T> Slot<T> {
    pub(crate) fn new() -> Self {
        Self(loom::sync::Mutex::new(None))
    }

    pub(crate) fn swap(&self, value: Option<Arc<T>>) -> Option<Arc<T>> {
        // loom's mutex is never poisoned: a panic ends the model.
        std::mem::replace(&mut *self.0.lock().ok()?, value)
    }
}

impl<T> std::fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").finish_non_exhaustive()
    }
}

//! A growable array in shared pages: cloning it is a snapshot, writing copies one page.

use std::fmt;
use std::sync::Arc;

/// An array of `T` in pages of `PAGE` elements.
///
/// A clone shares every page with its original and costs one reference count. The first write to
/// a page that a clone still shares copies that page, and the page directory (one pointer per
/// page) once per clone; the other pages stay shared. `PAGE` thus weighs the copied page against
/// the copied directory: a directory of a few thousand pointers and a page of a few tens of KiB
/// take some ten microseconds each.
///
/// The array has no length of its own. It grows by whole pages when it is written, and elements
/// that were never written are `T::default()`.
pub(super) struct CowVec<T, const PAGE: usize> {
    pages: Arc<Vec<Arc<[T; PAGE]>>>,
}

impl<T, const PAGE: usize> CowVec<T, PAGE> {
    /// The element at `index`, or `None` beyond the last page.
    #[inline]
    pub(super) fn get(&self, index: usize) -> Option<&T> {
        self.pages.get(index / PAGE)?.get(index % PAGE)
    }
}

impl<T: Clone + Default, const PAGE: usize> CowVec<T, PAGE> {
    /// An array without pages.
    pub(super) fn new() -> Self {
        Self {
            pages: Arc::new(Vec::new()),
        }
    }

    /// The element at `index`, to be written. Grows the array to hold it, and copies what clones
    /// share: look with [`CowVec::get`] first where a write may be needless.
    pub(super) fn get_mut(&mut self, index: usize) -> &mut T {
        let number = index / PAGE;
        let pages = Arc::make_mut(&mut self.pages);
        if number >= pages.len() {
            // The new pages are one page, shared until they are written.
            let blank = Arc::new(std::array::from_fn(|_| T::default()));
            pages.resize(number + 1, blank);
        }
        &mut Arc::make_mut(&mut pages[number])[index % PAGE]
    }
}

impl<T, const PAGE: usize> Clone for CowVec<T, PAGE> {
    fn clone(&self) -> Self {
        Self {
            pages: Arc::clone(&self.pages),
        }
    }
}

impl<T: Clone + Default, const PAGE: usize> Default for CowVec<T, PAGE> {
    fn default() -> Self {
        Self::new()
    }
}

impl<T, const PAGE: usize> fmt::Debug for CowVec<T, PAGE> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CowVec")
            .field("pages", &self.pages.len())
            .field("elements_per_page", &PAGE)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn shared_pages(a: &CowVec<u32, 4>, b: &CowVec<u32, 4>) -> usize {
        let both = a.pages.iter().zip(b.pages.iter());
        both.filter(|(a, b)| Arc::ptr_eq(a, b)).count()
    }

    #[test]
    fn grows_by_pages_of_defaults() {
        let mut array = CowVec::<u32, 4>::new();
        assert_eq!(array.get(0), None);
        *array.get_mut(9) = 7;
        assert_eq!(array.get(9), Some(&7));
        assert_eq!(array.get(8), Some(&0));
        assert_eq!(array.get(11), Some(&0));
        assert_eq!(array.get(12), None);
    }

    #[test]
    fn a_write_copies_one_page() {
        let mut array = CowVec::<u32, 4>::new();
        for index in 0..16 {
            *array.get_mut(index) = u32::try_from(index).unwrap();
        }
        let snapshot = array.clone();
        assert!(Arc::ptr_eq(&array.pages, &snapshot.pages));
        *array.get_mut(5) = 50;
        *array.get_mut(6) = 60;
        assert_eq!(shared_pages(&array, &snapshot), 3);
        assert_eq!((array.get(5), array.get(6)), (Some(&50), Some(&60)));
        assert_eq!((snapshot.get(5), snapshot.get(6)), (Some(&5), Some(&6)));
    }

    #[test]
    fn without_a_snapshot_nothing_is_copied() {
        let mut array = CowVec::<u32, 4>::new();
        *array.get_mut(0) = 1;
        let page = Arc::as_ptr(&array.pages[0]);
        drop(array.clone());
        *array.get_mut(1) = 2;
        assert_eq!(Arc::as_ptr(&array.pages[0]), page);
    }

    proptest! {
        #[test]
        fn every_snapshot_keeps_what_it_saw(
            steps in prop::collection::vec((0usize..40, any::<u32>(), any::<bool>()), 1..200),
        ) {
            let mut array = CowVec::<u32, 4>::new();
            let mut model = vec![0; 40];
            let mut snapshots = Vec::new();
            for (index, value, keep) in steps {
                *array.get_mut(index) = value;
                model[index] = value;
                if keep {
                    snapshots.push((array.clone(), model.clone()));
                }
            }
            snapshots.push((array, model));
            for (array, model) in snapshots {
                for (index, value) in model.iter().enumerate() {
                    prop_assert_eq!(array.get(index).copied().unwrap_or(0), *value);
                }
            }
        }
    }
}

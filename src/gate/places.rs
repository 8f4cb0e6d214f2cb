//! Places for those who do something at once, of which there are so many.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// So many places. A configuration that follows has a limit of its own, and counts who still has a place under this one.
#[derive(Debug, Clone)]
pub(super) struct Places {
    taken: Arc<AtomicUsize>,
    limit: usize,
}

/// A place; given back when dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<AtomicUsize>);

impl Places {
    /// So many places, none of them taken.
    pub fn new(limit: usize) -> Places {
        Places { taken: Arc::default(), limit }
    }

    /// The same with another limit: who has a place keeps it.
    pub fn limited_to(&self, limit: usize) -> Places {
        Places { taken: self.taken.clone(), limit }
    }

    /// A place, if there is one left.
    pub fn take(&self) -> Option<Place> {
        let one_more = |taken: usize| (taken < self.limit).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Place(self.taken.clone()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_are_as_many_as_the_limit_says_and_who_has_one_keeps_it_under_the_next() {
        let places = Places::new(2);
        let (first, second) = (places.take(), places.take());
        assert!(first.is_some() && second.is_some() && places.take().is_none());
        let fewer = places.limited_to(1);
        drop(first);
        assert!(fewer.take().is_none(), "one is still taken");
        drop(second);
        let only = fewer.take();
        assert!(only.is_some() && fewer.take().is_none());
        assert!(places.limited_to(3).take().is_some());
    }
}

//! Places for those who do something at once, of which there are so many.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::gate::share::AddressShare;

/// So many places. A configuration that follows has a limit of its own, and counts who still has a place under this one.
#[derive(Debug, Clone)]
pub(in crate::gate) struct Places {
    taken: Arc<AtomicUsize>,
    limit: usize,
}

/// A place; given back when dropped.
#[derive(Debug, Default)]
pub(in crate::gate) struct Place {
    /// The counters that the place is counted in.
    counters: [Option<Arc<AtomicUsize>>; 3],
}

impl Place {
    /// Counts the place in one more counter, if that is below `limit`.
    fn count_in(mut self, counter: &Arc<AtomicUsize>, limit: usize) -> Option<Place> {
        let one_more = |taken: usize| (taken < limit).then_some(taken + 1);
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        let free = self.counters.iter_mut().find(|counter| counter.is_none())?;
        *free = Some(counter.clone());
        Some(self)
    }
}

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
        Place::default().count_in(&self.taken, self.limit)
    }

    /// The same for an address that has so many already: it takes at most half of them, and may always take one.
    pub fn take_for(&self, held: Option<&Arc<AtomicUsize>>) -> Option<Place> {
        let place = match held {
            Some(held) => Place::default().count_in(held, self.limit.div_ceil(2))?,
            None => Place::default(),
        };
        place.count_in(&self.taken, self.limit)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for counter in self.counters.iter().flatten() {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The places of requests that are worked on. Requests that pass through without protection take at most three quarters
/// of them, so that a quarter is left for protected requests. One client address takes at most half (and may always take
/// one), so that no single client keeps all others out.
#[derive(Debug)]
pub(in crate::gate) struct InFlight {
    all: Places,
    passing: Places,
}

impl InFlight {
    /// `limit` places, none of them taken.
    pub fn new(limit: usize) -> InFlight {
        InFlight { all: Places::new(limit), passing: Places::new(limit - limit / 4) }
    }

    /// The same places under another limit: whoever has a place keeps it.
    pub fn limited_to(&self, limit: usize) -> InFlight {
        InFlight {
            all: self.all.limited_to(limit),
            passing: self.passing.limited_to(limit - limit / 4),
        }
    }

    /// A place for a protected request, if one is left for it.
    pub fn protected(&self, address: Option<&Arc<AddressShare>>) -> Option<Place> {
        self.count(Place::default(), address)
    }

    /// A place for a request that passes through, if one is left for it.
    pub fn passing(&self, address: Option<&Arc<AddressShare>>) -> Option<Place> {
        self.count(self.passing.take()?, address)
    }

    fn count(&self, place: Place, address: Option<&Arc<AddressShare>>) -> Option<Place> {
        let place = match address {
            Some(address) => place.count_in(&address.in_flight, self.all.limit.div_ceil(2))?,
            None => place,
        };
        place.count_in(&self.all.taken, self.all.limit)
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
    #[test]
    fn a_quarter_is_left_for_protected_requests_and_one_address_takes_half() {
        let in_flight = InFlight::new(8);
        let passing: Vec<_> = std::iter::from_fn(|| in_flight.passing(None)).collect();
        assert_eq!(passing.len(), 6);
        let protected: Vec<_> = std::iter::from_fn(|| in_flight.protected(None)).collect();
        assert_eq!(protected.len(), 2);
        drop((passing, protected));
        let (one, other) = (Arc::<AddressShare>::default(), Arc::<AddressShare>::default());
        let of_one: Vec<_> = std::iter::from_fn(|| in_flight.passing(Some(&one))).collect();
        assert_eq!((of_one.len(), in_flight.protected(Some(&one)).is_none()), (4, true));
        let of_other: Vec<_> = std::iter::from_fn(|| in_flight.passing(Some(&other))).collect();
        assert_eq!((of_other.len(), in_flight.protected(Some(&other)).is_some()), (2, true));
        drop((of_one, of_other));
        assert!(
            in_flight.limited_to(1).passing(Some(&one)).is_some(),
            "even one place can be taken"
        );
    }
}

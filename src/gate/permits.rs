//! Permits limit how many requests may do one thing at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::gate::share::AddressShare;

/// A limited number of permits. A reload may change the limit, but keeps the counter. So permits
/// that were taken under the previous limit still count.
#[derive(Debug, Clone)]
pub(in crate::gate) struct Permits {
    taken: Arc<AtomicUsize>,
    limit: usize,
}

/// A permit; dropping it gives it back.
#[derive(Debug, Default)]
pub(in crate::gate) struct Permit {
    /// The counters that count this permit.
    counters: [Option<Arc<AtomicUsize>>; 3],
}

impl Permit {
    /// Counts the permit in one more counter, if that counter is below `limit`.
    fn count_in(mut self, counter: &Arc<AtomicUsize>, limit: usize) -> Option<Permit> {
        let one_more = |taken: usize| (taken < limit).then_some(taken + 1);
        counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        let free = self.counters.iter_mut().find(|counter| counter.is_none())?;
        *free = Some(counter.clone());
        Some(self)
    }
}

impl Permits {
    /// Creates `limit` free permits.
    pub fn new(limit: usize) -> Permits {
        Permits { taken: Arc::default(), limit }
    }

    /// Returns the same permits under another limit. Permits that are taken stay valid.
    pub fn limited_to(&self, limit: usize) -> Permits {
        Permits { taken: self.taken.clone(), limit }
    }

    /// Takes a permit, if one is free.
    pub fn take(&self) -> Option<Permit> {
        Permit::default().count_in(&self.taken, self.limit)
    }

    /// Takes a permit for a client address. `held` counts the permits of this address, which may
    /// hold half of all permits (rounded up). `None` means a request without an address, to which
    /// only the limit of all permits applies.
    pub fn take_for(&self, held: Option<&Arc<AtomicUsize>>) -> Option<Permit> {
        let permit = match held {
            Some(held) => Permit::default().count_in(held, self.limit.div_ceil(2))?,
            None => Permit::default(),
        };
        permit.count_in(&self.taken, self.limit)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        for counter in self.counters.iter().flatten() {
            counter.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The permits of active requests. Requests that pass through without protection take at most three
/// quarters of them, so that a quarter is left for protected requests. One client address takes at
/// most half of them (rounded up), so that no single client can take all permits.
#[derive(Debug)]
pub(in crate::gate) struct InFlightPermits {
    all: Permits,
    passing: Permits,
}

impl InFlightPermits {
    /// Creates `limit` free permits.
    pub fn new(limit: usize) -> InFlightPermits {
        InFlightPermits { all: Permits::new(limit), passing: Permits::new(limit - limit / 4) }
    }

    /// Returns the same permits under another limit. Permits that are taken stay valid.
    pub fn limited_to(&self, limit: usize) -> InFlightPermits {
        InFlightPermits {
            all: self.all.limited_to(limit),
            passing: self.passing.limited_to(limit - limit / 4),
        }
    }

    /// Takes a permit for a protected request, if one is free for it.
    pub fn protected(&self, address: Option<&Arc<AddressShare>>) -> Option<Permit> {
        self.count(Permit::default(), address)
    }

    /// Takes a permit for a request that passes through, if one is free for it.
    pub fn passing(&self, address: Option<&Arc<AddressShare>>) -> Option<Permit> {
        self.count(self.passing.take()?, address)
    }

    fn count(&self, permit: Permit, address: Option<&Arc<AddressShare>>) -> Option<Permit> {
        let permit = match address {
            Some(address) => permit.count_in(&address.in_flight, self.all.limit.div_ceil(2))?,
            None => permit,
        };
        permit.count_in(&self.all.taken, self.all.limit)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_limit_is_the_number_of_permits_and_a_taken_permit_still_counts_under_a_new_limit() {
        let permits = Permits::new(2);
        let (first, second) = (permits.take(), permits.take());
        assert!(first.is_some() && second.is_some() && permits.take().is_none());
        let fewer = permits.limited_to(1);
        drop(first);
        assert!(fewer.take().is_none(), "one is still taken");
        drop(second);
        let only = fewer.take();
        assert!(only.is_some() && fewer.take().is_none());
        assert!(permits.limited_to(3).take().is_some());
    }

    #[test]
    fn a_quarter_is_left_for_protected_requests_and_one_address_takes_half() {
        let in_flight = InFlightPermits::new(8);
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
            "even a single permit can be taken"
        );
    }
}

//! The watchers of records in this process. All watchers of a slot share one entry.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, watch};

use crate::key::Slot;

/// The watched slots of a process. Cheap to clone.
#[derive(Clone, Default)]
pub struct Hub(Arc<Inner>);

#[derive(Default)]
struct Inner {
    slots: Mutex<HashMap<Slot, WatchedSlot>>,
    /// Slots that gained their first or lost their last watcher, for a store that subscribes at a
    /// server. `None` while there is no subscriber: a new subscriber begins with all watched slots,
    /// so it needs no earlier changes.
    changed: Mutex<Option<HashSet<Slot>>>,
    wake: Notify,
    /// Whether a new watcher must wait for its subscription before it reads the record.
    remote: bool,
}

struct WatchedSlot {
    sender: watch::Sender<u64>,
    watchers: usize,
    /// Whether the server has confirmed the subscription. If so, new watchers may read the record
    /// at once.
    confirmed: bool,
}

/// A watcher of a slot. Dropping it ends the watch.
pub struct Watch {
    hub: Hub,
    slot: Slot,
    receiver: watch::Receiver<u64>,
    peers: usize,
}

impl Hub {
    /// Returns a hub for a store that only this process changes.
    pub fn local() -> Hub {
        Hub::default()
    }

    /// Returns a hub for a store that other processes change too. [`Hub::next_changes`] returns the
    /// slots to subscribe to.
    pub fn remote() -> Hub {
        Hub(Arc::new(Inner { remote: true, ..Inner::default() }))
    }

    /// Begins to watch a slot.
    pub fn watch(&self, slot: &Slot) -> Watch {
        let mut slots = lock(&self.0.slots);
        let remote = self.0.remote;
        let entry = slots.entry(*slot).or_insert_with(|| WatchedSlot {
            sender: watch::Sender::new(0),
            watchers: 0,
            confirmed: !remote,
        });
        entry.watchers += 1;
        let mut receiver = entry.sender.subscribe();
        if entry.confirmed {
            receiver.mark_changed();
        }
        let (peers, first) = (entry.watchers, entry.watchers == 1);
        drop(slots);
        if first {
            self.note(slot);
        }
        Watch { hub: self.clone(), slot: *slot, receiver, peers }
    }

    /// Wakes the watchers of a slot.
    pub fn notify(&self, slot: &Slot) {
        if let Some(entry) = lock(&self.0.slots).get(slot) {
            entry.sender.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    /// Wakes the watchers of a slot without a confirmed subscription. If the server's user has no
    /// right to subscribe, nothing else wakes them.
    pub fn notify_unconfirmed(&self, slot: &Slot) {
        if let Some(entry) = lock(&self.0.slots).get(slot).filter(|entry| !entry.confirmed) {
            entry.sender.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    /// Marks the subscription to a slot as confirmed, and wakes its watchers: they may have missed
    /// changes.
    pub fn confirm(&self, slot: &Slot) {
        if let Some(entry) = lock(&self.0.slots).get_mut(slot) {
            entry.confirmed = true;
            entry.sender.send_modify(|n| *n = n.wrapping_add(1));
        }
    }

    /// Marks all subscriptions as lost. Changes are not collected until the next [`Hub::follow`].
    pub fn lost(&self) {
        *lock(&self.0.changed) = None;
        lock(&self.0.slots).values_mut().for_each(|entry| entry.confirmed = false);
    }

    /// Begins to collect changes, and returns the slots that are watched now. Marks earlier
    /// subscriptions as lost.
    pub fn follow(&self) -> Vec<Slot> {
        self.lost();
        // This comes before the slots are read. So a slot that gets its first watcher meanwhile is
        // in the set, in the returned list, or in both.
        *lock(&self.0.changed) = Some(HashSet::new());
        lock(&self.0.slots).keys().copied().collect()
    }

    /// Waits until some slot is watched.
    pub async fn any_watched(&self) {
        while lock(&self.0.slots).is_empty() {
            self.0.wake.notified().await;
        }
    }

    /// Whether a slot has watchers.
    pub fn is_watched(&self, slot: &Slot) -> bool {
        lock(&self.0.slots).contains_key(slot)
    }

    /// Waits until slots have gained their first or lost their last watcher since [`Hub::follow`],
    /// and returns them.
    pub async fn next_changes(&self) -> HashSet<Slot> {
        loop {
            let changes = lock(&self.0.changed).as_mut().map(std::mem::take).unwrap_or_default();
            if !changes.is_empty() {
                return changes;
            }
            self.0.wake.notified().await;
        }
    }

    fn note(&self, slot: &Slot) {
        if self.0.remote {
            if let Some(changed) = lock(&self.0.changed).as_mut() {
                changed.insert(*slot);
            }
            self.0.wake.notify_one();
        }
    }
}

impl Watch {
    /// Returns when the record may have changed since the last call, and once at the start.
    pub async fn changed(&mut self) {
        if self.receiver.changed().await.is_err() {
            // The hub keeps the sender of a watched slot, so this can't happen. Callers also poll,
            // so they would notice changes anyway.
            std::future::pending::<()>().await;
        }
    }

    /// Returns the number of the slot's watchers right after this one was added.
    pub fn peers(&self) -> usize {
        self.peers
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let mut slots = lock(&self.hub.0.slots);
        if let Some(entry) = slots.get_mut(&self.slot) {
            entry.watchers -= 1;
            if entry.watchers == 0 {
                slots.remove(&self.slot);
                drop(slots);
                self.hub.note(&self.slot);
            }
        }
    }
}

/// Locks a mutex. A panic elsewhere leaves the map consistent: every change is a single insert,
/// removal or count.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::key::Space;
    use crate::store::suite::slot;

    const HERE: fn(u64) -> Slot = |n| slot(Space::Enforced, n);

    /// Whether a watcher is woken now.
    fn is_woken(watch: &mut Watch) -> bool {
        watch.changed().now_or_never().is_some()
    }

    fn changes(hub: &Hub) -> Vec<Slot> {
        hub.next_changes().now_or_never().unwrap_or_default().into_iter().collect()
    }

    #[test]
    fn changes_do_not_accumulate_without_a_subscriber() {
        let hub = Hub::remote();
        let collected = |hub: &Hub| lock(&hub.0.changed).as_ref().map_or(0, HashSet::len);
        assert!(hub.any_watched().now_or_never().is_none());
        (0..1000).for_each(|n| drop(hub.watch(&HERE(n))));
        assert_eq!(collected(&hub), 0, "before the first subscription");
        let _watch = hub.watch(&HERE(1));
        assert!(hub.any_watched().now_or_never().is_some());
        assert_eq!(hub.follow(), [HERE(1)]);
        (0..1000).for_each(|n| drop(hub.watch(&HERE(n % 2))));
        assert_eq!(
            collected(&hub),
            1,
            "each slot once, and only where a first or last watcher changed"
        );
        hub.lost();
        (0..1000).for_each(|n| drop(hub.watch(&HERE(n))));
        assert_eq!(collected(&hub), 0, "after one that failed");
        assert_eq!(hub.follow(), [HERE(1)]);
    }

    #[test]
    fn a_watcher_of_a_local_store_is_woken_at_once_and_after_each_change() {
        let hub = Hub::local();
        let mut watch = hub.watch(&HERE(1));
        assert!(is_woken(&mut watch) && !is_woken(&mut watch));
        hub.notify(&HERE(1));
        hub.notify(&HERE(1));
        assert!(is_woken(&mut watch) && !is_woken(&mut watch), "woken once for all changes before");
        hub.notify(&HERE(2));
        assert!(!is_woken(&mut watch));
        assert_eq!(changes(&hub), [], "nothing is to be subscribed to");
    }

    #[test]
    fn a_watcher_of_a_shared_store_is_woken_once_its_subscription_is_confirmed() {
        let hub = Hub::remote();
        let mut first = hub.watch(&HERE(1));
        assert!(!is_woken(&mut first));
        hub.confirm(&HERE(1));
        assert!(is_woken(&mut first) && !is_woken(&mut first));
        assert!(is_woken(&mut hub.watch(&HERE(1))), "the subscription is confirmed already");
        assert_eq!(hub.follow(), [HERE(1)]);
        let mut later = hub.watch(&HERE(1));
        assert!(!is_woken(&mut later), "the subscription must be made again");
        hub.confirm(&HERE(1));
        assert!(is_woken(&mut later) && is_woken(&mut first));
    }

    #[test]
    fn a_change_of_this_process_wakes_a_watcher_without_a_subscription() {
        let hub = Hub::remote();
        let mut watch = hub.watch(&HERE(1));
        hub.notify_unconfirmed(&HERE(1));
        assert!(is_woken(&mut watch) && !is_woken(&mut watch));
        hub.confirm(&HERE(1));
        assert!(is_woken(&mut watch));
        hub.notify_unconfirmed(&HERE(1));
        assert!(!is_woken(&mut watch), "the server's message wakes it");
    }

    #[test]
    fn a_slot_is_subscribed_to_from_its_first_watcher_to_its_last() {
        let hub = Hub::remote();
        assert_eq!((hub.follow(), changes(&hub)), (vec![], vec![]));
        let watches = [hub.watch(&HERE(1)), hub.watch(&HERE(1)), hub.watch(&HERE(1))];
        assert_eq!(watches.each_ref().map(Watch::peers), [1, 2, 3]);
        assert_eq!(changes(&hub), [HERE(1)], "once");
        let [first, second, third] = watches;
        drop((first, second));
        assert!(hub.is_watched(&HERE(1)) && changes(&hub).is_empty());
        drop(third);
        assert!(!hub.is_watched(&HERE(1)));
        assert_eq!((changes(&hub), hub.follow()), (vec![HERE(1)], vec![]));
    }
}

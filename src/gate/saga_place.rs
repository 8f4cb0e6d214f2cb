//! The place of a saga on its gateway: one of the sagas that may run, and the memory of its
//! content.

use bytes::Bytes;

use super::budget::Hold;
use super::permits::Permit;

/// A saga is in memory twice: as the content of its record, and decoded.
const COPIES: usize = 2;

/// The place of a saga that runs. Dropping it gives the place and the memory back.
#[derive(Debug)]
pub struct SagaPlace {
    /// `None` while the saga is stuck.
    permit: Option<Permit>,
    memory: Hold,
}

/// A saga that a claim begins.
pub(super) struct NewSaga {
    /// The content of the record.
    pub content: Bytes,
    pub place: SagaPlace,
}

impl SagaPlace {
    pub(super) fn new(permit: Permit, memory: Hold) -> SagaPlace {
        SagaPlace { permit: Some(permit), memory }
    }

    /// Gives the place up, but not the memory: the saga waits for a person or an upstream.
    pub(super) fn rest(&mut self) {
        self.permit = None;
    }

    /// Takes a place again, if one is free. The saga goes on without one, too.
    pub(super) fn resume(&mut self, take: impl FnOnce() -> Option<Permit>) {
        if self.permit.is_none() {
            self.permit = take();
        }
    }

    /// Takes the memory of a content that begins a saga. Returns `false` if too little is left.
    pub(super) fn admits(&mut self, content: &Bytes) -> bool {
        self.memory.grow(content.len() * COPIES)
    }

    /// Counts the memory of the saga's content. A saga that runs is never stopped for want of
    /// memory: new requests are refused instead.
    pub(super) fn keeps(&mut self, content: &Bytes) {
        self.memory.resize(content.len() * COPIES);
    }
}

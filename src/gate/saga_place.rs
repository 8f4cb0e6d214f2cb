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
    _permit: Permit,
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
        SagaPlace { _permit: permit, memory }
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

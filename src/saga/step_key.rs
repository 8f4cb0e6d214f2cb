//! The key of a step's operation.

use std::fmt;

use super::log::{SagaInstance, StepDirection};
use crate::hex;
use crate::key::PartHasher;

/// The idempotency key of a step's operation: equal for every attempt, on every gateway, and
/// different for every other saga, step, direction and generation. It is a UUID of version 4 in
/// form, because some APIs accept no other keys.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StepKey(String);

impl StepKey {
    /// Bytes of a key.
    pub const BYTES: usize = 36;

    /// Creates the key. It does not depend on the client's key: the client may use its key again
    /// after the retention, and the operations of the earlier saga may still have records.
    pub fn new(
        instance: SagaInstance,
        step: &str,
        direction: StepDirection,
        generation: u32,
    ) -> StepKey {
        let direction: &[u8] = match direction {
            StepDirection::Action => b"action",
            StepDirection::Compensation => b"compensation",
        };
        let mut hasher = PartHasher::new("saga-step");
        hasher.part(&instance.0).part(step.as_bytes()).part(direction);
        hasher.part(&generation.to_be_bytes());
        StepKey(hex::uuid(&hasher.finish()))
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for StepKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

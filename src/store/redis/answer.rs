//! Parsers of the server's answers that several calls share.

use redis::Value;

use super::layout;
use crate::record::Held;
use crate::store::StoreError;

/// Error text for an answer that can't be parsed.
pub(super) const UNREADABLE: &str = "its answer can't be read";

/// The error for an answer of a wrong type. The command may have been applied.
pub(super) fn unexpected() -> StoreError {
    StoreError::MaybeApplied("the server gave an answer that this version doesn't know".into())
}

/// Returns the elements of an array.
pub(super) fn array(answer: Value) -> Result<Vec<Value>, StoreError> {
    match answer {
        Value::Array(values) => Ok(values),
        _ => Err(unexpected()),
    }
}

/// Decodes a stored record; `None` for an absent key. `now_ms` is the server's time of the read.
pub(super) fn held(value: Value, now_ms: u64) -> Result<Option<Held>, StoreError> {
    match value {
        Value::Nil => Ok(None),
        Value::BulkString(bytes) => Ok(Some(layout::read(bytes, now_ms)?)),
        _ => Err(unexpected()),
    }
}

/// Returns the milliseconds since 1970 of an answer to TIME: seconds and microseconds, as text.
pub(super) fn time_ms(answer: Value) -> Result<u64, StoreError> {
    let (seconds, micros): (u64, u64) =
        redis::from_redis_value(answer).map_err(|_| unexpected())?;
    Ok(seconds * 1000 + micros / 1000)
}

//! Stories of two writers of one record: neither write may be mistaken for the other.
#![allow(missing_docs)]

use super::records::{HERE, LONG, claim, lease, record, uncertain};
use super::stage::Stage;
use crate::record::{Cause, Fence, State};

pub async fn an_operators_retry_and_a_late_uncertain_are_two_writes(stage: Stage) {
    let retry = |version, fence| {
        record(
            version,
            fence,
            State::Uncertain { cause: Cause::LeaseEnded, since_ms: Some(5), retry: Some(Fence(1)) },
        )
    };
    let late =
        record(12, 1, State::Uncertain { cause: Cause::Broken, since_ms: None, retry: None });
    for (n, first, second) in
        [(1, retry(12, 7), late.clone()), (2, late, retry(12, 7)), (3, retry(12, 7), retry(12, 8))]
    {
        stage.stored(&HERE(n), None, &claim(10, 1), lease(LONG)).await;
        stage.stored(&HERE(n), Some(10), &uncertain(11, 1), lease(LONG)).await;
        stage.stored(&HERE(n), Some(11), &first, lease(LONG)).await;
        let held = stage.stale(&HERE(n), Some(11), &second, lease(LONG)).await.unwrap();
        assert_eq!(held.record, first, "the second gets the first");
        stage.stored(&HERE(n), Some(11), &first, lease(LONG)).await;
    }
}

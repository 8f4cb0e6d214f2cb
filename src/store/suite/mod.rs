//! The tests that every store must pass. Begin here to write a store of your own.
//!
//! A story is a function over a fresh store, and [`stories!`] makes a test of each. To write a new
//! store:
//!
//! 1. Implement [`Records`](crate::store::Records), [`EventLog`](crate::store::EventLog) and
//!    [`IdentityNotes`](crate::store::IdentityNotes) for one type. [`memory`](crate::store::memory)
//!    is the shortest example: 600 lines. A wrapper implements only the parts that it changes.
//! 2. Make [`write`](crate::store::Records::write) one atomic step: compare the version, then write
//!    the record, the index of unsettled records or of sagas, the tombstone and the event.
//!    Everything else may be eventually consistent.
//! 3. Return [`StoreError::NotApplied`](crate::store::StoreError) only if nothing was written, and
//!    can't be written later.
//! 4. In the tests of the store, write an `async fn stage() -> Stage` and call `stories!(stage)`.
//!    Outside of this crate, enable the feature `test-suite`.
//! 5. Add the store to [`open`](crate::store::open), with its capabilities.
//!
//! Stores without a clock that a test can move run in real time ([`Time::Real`]). So a story never
//! asserts that little time has passed, and it waits for conditions with a generous limit.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod contents_stories;
mod log_stories;
mod outbox_stories;
mod records;
mod saga_stories;
mod stage;
mod stories;
mod write_stories;

pub use crate::store_stories as stories;
pub use contents_stories::*;
pub use log_stories::*;
pub use outbox_stories::*;
pub use records::{claim, completed, completed_with, slot};
pub use saga_stories::*;
pub use stage::{Stage, Time};
pub use stories::*;
pub use write_stories::*;

/// Makes a test of every story, on the stage that `$stage` sets up: a path to an `async fn() ->
/// Stage`.
#[macro_export]
macro_rules! store_stories {
    ($stage:path) => {
        $crate::store_stories! { @each $stage:
            a_claim_over_nothing_is_stored
            a_stale_answer_carries_the_record_that_stands
            deadlines_are_counted_by_the_stores_clock
            a_settled_record_is_never_due
            one_of_many_claims_wins
            a_record_keeps_its_publication
            a_write_names_the_version_it_replaces
            versions_and_fences_use_all_their_bits
            a_repeated_write_is_stored_once
            an_operators_retry_and_a_late_uncertain_are_two_writes
            a_late_claim_meets_the_marker_and_is_refused
            a_marker_is_replaced_only_by_naming_its_version
            a_renewal_moves_the_due_time_and_no_version
            a_renewal_prolongs_the_life_of_the_record
            only_the_active_attempt_renews
            a_lease_that_is_over_is_not_renewed
            an_ended_lease_is_due_and_nothing_else
            no_more_is_due_than_requested
            a_result_leaves_the_index
            an_uncertain_record_stays_among_the_unsettled
            a_record_is_gone_when_its_time_is_over
            the_index_forgets_records_that_are_gone
            a_tombstone_outlives_its_result
            a_claim_meets_the_result_and_not_its_tombstone
            a_tombstone_bars_a_claim_over_a_marker_too
            a_tombstone_ends
            a_tombstone_blocks_only_claims_that_ask_for_it
            only_a_result_leaves_a_tombstone
            a_listing_pages_through_everything_once
            an_empty_store_lists_nothing
            a_malformed_cursor_is_an_error
            shadow_records_are_kept_apart_and_not_listed
            a_watcher_is_woken_at_once
            a_swap_wakes_every_watcher
            notes_are_separate_and_change_only_from_the_expected_text
            a_big_reply_comes_back_as_it_was
            every_state_comes_back_as_it_was
            a_saga_goes_on_and_ends_in_the_slot_of_its_request
            a_saga_comes_back_as_it_was
            a_saga_without_its_owner_is_due_among_the_sagas_alone
            sagas_are_listed_apart_from_the_unsettled
            only_the_owner_of_a_saga_renews_and_only_in_time
            a_saga_is_given_back_by_a_renewal_without_a_lease
            a_saga_is_taken_over_and_its_former_owner_changes_nothing
            a_saga_that_has_ended_is_not_due
            no_more_sagas_are_due_than_requested
            a_tombstone_bars_a_saga_that_asks_for_it
            each_write_of_a_saga_has_its_events_for_a_sink_and_a_refused_one_has_none
            a_large_saga_is_read_renewed_and_written_like_any_other
            a_bar_refuses_every_claim_and_is_never_due
            a_bar_loses_to_a_claim_that_was_faster
            a_bar_over_a_record_under_way_takes_it_out_of_the_index
            an_event_is_appended_with_its_write_and_once
            a_write_without_an_event_leaves_the_log_alone
            an_event_for_a_sink_is_written_with_its_record
            a_stale_write_writes_no_event_for_a_sink
            a_repeated_write_brings_no_delivered_event_back
            events_of_an_operation_are_due_one_after_the_other_in_order
            a_postponed_event_holds_back_its_own_operation_alone
            a_relay_that_lost_its_partition_changes_nothing
            an_event_that_is_written_late_is_due_first_and_has_its_own_attempts
            a_read_of_due_events_is_limited
            relays_attend_until_their_lease_ends_or_they_leave
            a_relay_is_woken_by_an_event
            an_event_that_is_buried_is_a_dead_letter_and_waits_no_more
            a_dead_letter_is_requeued_in_a_new_round
            only_the_owner_replaces_the_content_of_a_waiting_event
            a_call_for_an_earlier_round_changes_nothing
            a_discarded_dead_letter_is_gone
            a_listing_of_dead_letters_pages_through_those_that_match
            contents_of_a_waiting_event_are_replaced_and_nothing_else_of_it
            contents_of_a_dead_letter_are_replaced_unless_it_was_buried_again
            a_listing_of_contents_pages_through_all_of_them
            an_event_with_a_tombstone_leaves_the_tombstone_as_it_was
            the_log_is_read_from_a_position_and_in_order
            the_chain_verifies_in_pieces_too
            the_log_is_trimmed_by_age_and_not_past_a_reader
            observations_are_read_in_order_and_trimmed_by_age
            observations_stay_within_their_limit
            an_unknown_partition_is_empty
        }
    };
    (@each $stage:path: $($story:ident)*) => {
        $(
            #[tokio::test]
            async fn $story() {
                $crate::store::suite::$story($stage().await).await;
            }
        )*
    };
}

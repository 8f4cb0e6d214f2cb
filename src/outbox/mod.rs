//! The relay: delivers the events of the store's outbox to the sinks.
//!
//! A change of an operation writes its events together with its record (see
//! [`crate::store::outbox`]). The relay of a gateway owns some of the store's partitions. For each
//! sink it reads the events that are due, delivers them, and removes them. A request never waits
//! for the relay.
//!
//! - [`settings`]: the settings of the relay and its sinks
//! - [`relay`]: starts and stops everything; `membership` and `ownership`: the partitions that this
//!   relay owns; [`shares`]: which partitions it gets
//! - `worker`: reads the events of one sink that are due; `due_buffer`: those that it has not yet
//!   attempted; `attempt`: one attempt from begin to end; `conclusion`: what an attempt means for
//!   its event; [`rules`]: when an attempt may begin, when it is repeated, and when its event is
//!   buried; `report`: the attempts of a dead letter
//! - [`sink`]: a sink and its health; [`states`]: which sinks are paused; [`backlog`]: how much
//!   waits
//! - [`delivery`]: an event on its way to a receiver, and the receiver's answer; `test_event`: the
//!   event with which an operator tests a sink
//! - [`webhook`]: the sink that sends webhooks; `redis_stream`: the sink that adds to a stream of
//!   Redis; `nats`: the sink that publishes to a stream of NATS
//! - [`call`]: the sink that calls an API through the gateway's own gate; [`caller`]: its way to
//!   the gate; `known_calls`: the calls of this process
//! - `shared_connection`: a connection that all attempts at a broker share
//!
//! To add a kind of sink, implement [`sink::SinkClient`], and add its settings to
//! [`settings::SinkTarget`].

mod attempt;
pub mod backlog;
pub mod call;
pub mod caller;
mod conclusion;
pub mod delivery;
mod due_buffer;
mod known_calls;
mod membership;
#[cfg(feature = "nats")]
pub mod nats;
mod ownership;
mod rate;
#[cfg(feature = "redis")]
pub mod redis_stream;
pub mod relay;
mod report;
pub mod rules;
pub mod settings;
mod shared;
#[cfg(any(feature = "redis", feature = "nats"))]
mod shared_connection;
pub mod shares;
pub mod sink;
pub mod states;
mod test_event;
pub mod webhook;
mod worker;

pub use conclusion::OUTCOME_EXPIRED;
pub use report::AttemptsReport;
pub use test_event::{NotTestable, SinkTest};

#[cfg(test)]
mod tests;

//! What the process says of itself: metrics and logs. No key, credential or body ever comes in here.

mod breakers;
mod logs;
mod metrics;
mod reloads;

pub use breakers::{BreakerMeter, BreakerState};
pub use logs::{FilterError, LogFormat, init as init_logs, log_filter, set_log_filter};
pub use metrics::{Answer, CacheMeter, Meter, RouteMeter, StoreCall, Timer};
pub use reloads::ReloadMeter;

//! The checkout of the demo: three requests at three services, and the third one is refused. The
//! saga undoes the other two.

use std::fmt;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use http::{Method, StatusCode};
use serde_json::json;

use super::client::{self, PaymentTries};

/// The path of checkouts at the gateway.
const CHECKOUTS: &str = "/v1/checkouts";
/// The key of the checkout.
const KEY: &str = "checkout-1";

/// What the services execute, in order: the request, the status, and what it means.
const EXPECTED: [(&str, u16, &str); 5] = [
    ("POST /v1/reservations", 201, "reserve: done"),
    ("POST /v1/charges", 201, "charge: done"),
    ("POST /v1/shipments", 422, "ship: refused, so what was done is undone"),
    ("POST /v1/refunds", 201, "charge: undone"),
    ("DELETE /v1/reservations/res_1", 204, "reserve: undone"),
];

/// The services of the checkout, with the requests that they have executed. They execute each
/// request that they get. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Services(Arc<Mutex<Vec<String>>>);

impl Services {
    /// Executes a request. Returns status and body of the answer.
    pub fn execute(&self, method: &Method, path: &str) -> (StatusCode, String) {
        let line = format!("{method} {path}");
        let known = EXPECTED.iter().find(|(expected, ..)| *expected == line);
        let status = known.and_then(|(_, status, _)| StatusCode::from_u16(*status).ok());
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(line);
        let answer = match (status, path) {
            (None, _) => json!({ "message": "there is nothing here" }),
            (Some(StatusCode::NO_CONTENT), _) => return (StatusCode::NO_CONTENT, String::new()),
            (_, "/v1/reservations") => json!({ "id": "res_1" }),
            (_, "/v1/charges") => json!({ "id": "pay_1" }),
            (_, "/v1/shipments") => json!({ "message": "no carrier serves this address" }),
            _ => json!({ "id": "ref_1" }),
        };
        (status.unwrap_or(StatusCode::NOT_FOUND), format!("{answer}\n"))
    }

    /// Sends a checkout through the gateway, twice.
    pub async fn check_out(&self, gateway: SocketAddr) -> CheckoutResult {
        let cart = json!({ "order": KEY, "sku": "lamp", "amount": 4990, "to": "Atlantis" });
        let first = client::send(gateway, CHECKOUTS, KEY, &cart).await;
        let again = client::send(gateway, CHECKOUTS, KEY, &cart).await;
        let executed = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        CheckoutResult { first, again, executed }
    }
}

/// What became of the checkout.
pub struct CheckoutResult {
    first: PaymentTries,
    again: PaymentTries,
    executed: Vec<String>,
}

impl CheckoutResult {
    /// Whether each request was executed once, in its order.
    pub fn is_undone(&self) -> bool {
        self.executed.iter().eq(EXPECTED.iter().map(|(line, ..)| *line))
    }
}

impl fmt::Display for CheckoutResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, line) in self.executed.iter().enumerate() {
            let known = EXPECTED.iter().find(|(expected, ..)| expected == line);
            let (status, meaning) =
                known.map_or((404, "unknown"), |(_, status, text)| (*status, text));
            writeln!(f, "  {}  {line:<30}  {status}   {meaning}", at + 1)?;
        }
        writeln!(f, "\n  the client saw: {}", self.first)?;
        writeln!(f, "  and with the same request again: {}", self.again)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::client::Try;

    #[test]
    fn a_checkout_is_undone_if_each_request_was_executed_once_and_in_order() {
        let tries = || PaymentTries { tries: vec![Try::TimedOut], gave_up: false };
        let undone = |executed: &[&str]| {
            let executed = executed.iter().map(|line| (*line).to_owned()).collect();
            CheckoutResult { first: tries(), again: tries(), executed }.is_undone()
        };
        let lines = EXPECTED.map(|(line, ..)| line);
        assert!(undone(&lines));
        assert!(!undone(&lines[..4]), "a charge that was refunded, and a reservation that stays");
        assert!(!undone(&[&lines[..], &lines[3..4]].concat()), "a second refund");
        let mut swapped = lines;
        swapped.swap(3, 4);
        assert!(!undone(&swapped));
    }
}

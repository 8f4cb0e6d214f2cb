//! The ledger as a table. It has a line per order, marks double charges, and ends with the totals.

use std::fmt;

use super::api::{Charge, Order};
use super::client::PaymentTries;

/// The results of all orders of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ledger(Vec<Row>);

/// The result of an order.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Row {
    order: Order,
    history: PaymentTries,
    charges: usize,
}

/// The totals of a ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Totals {
    /// The number of orders.
    pub orders: usize,
    /// The number of charges.
    pub charges: usize,
    /// Orders that were charged more than once.
    pub doubled: usize,
}

/// The terminal sequences around a double charge: bold red, and back.
const ALARM: (&str, &str) = ("\x1b[1;31m", "\x1b[0m");

impl Ledger {
    /// Combines the tries of the clients with the charges of the API.
    pub fn new(history: Vec<(Order, PaymentTries)>, charges: &[Charge]) -> Ledger {
        let charges_for =
            |order: &Order| charges.iter().filter(|charge| charge.order == order.order).count();
        Ledger(
            history
                .into_iter()
                .map(|(order, history)| Row { charges: charges_for(&order), order, history })
                .collect(),
        )
    }

    /// Returns the totals.
    pub fn totals(&self) -> Totals {
        Totals {
            orders: self.0.len(),
            charges: self.0.iter().map(|row| row.charges).sum(),
            doubled: self.0.iter().filter(|row| row.charges > 1).count(),
        }
    }

    /// Returns the orders with a last response that reports a held operation, each with the
    /// operation's reference.
    pub fn held(&self) -> impl Iterator<Item = (&Order, &str)> {
        self.0.iter().filter_map(|row| row.history.held().map(|operation| (&row.order, operation)))
    }

    /// Formats the table, with or without terminal colours.
    pub fn table(&self, colours: bool) -> String {
        const HEAD: [&str; 5] = ["order", "amount", "tries", "charges", "what the client saw"];
        let cells: Vec<[String; 5]> = self.0.iter().map(Row::cells).collect();
        let width = |column: usize| {
            let longest = cells.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
            longest.max(HEAD[column].len())
        };
        let widths = [width(0), width(1), width(2), width(3), width(4)];
        let line = |[order, amount, tries, charges, saw]: [&str; 5]| {
            let [a, b, c, d, e] = widths;
            format!("  {order:a$}  {amount:>b$}  {tries:>c$}  {charges:>d$}   {saw:e$}")
        };
        let rule = "─".repeat(line(HEAD).chars().count() - 2);
        let mut out = format!("{}\n  {rule}\n", line(HEAD).trim_end());
        for (row, cells) in self.0.iter().zip(&cells) {
            let text = line(cells.each_ref().map(String::as_str));
            match row.mark() {
                Some(mark) if colours => {
                    out.push_str(&format!("{}{text}  ◀ {mark}{}\n", ALARM.0, ALARM.1))
                }
                Some(mark) => out.push_str(&format!("{text}  ◀ {mark}\n")),
                None => out.push_str(&format!("{}\n", text.trim_end())),
            }
        }
        out
    }
}

impl Row {
    fn cells(&self) -> [String; 5] {
        [
            self.order.order.clone(),
            format!("{}.{:02}", self.order.amount / 100, self.order.amount % 100),
            self.history.tries.len().to_string(),
            self.charges.to_string(),
            self.history.to_string(),
        ]
    }

    fn mark(&self) -> Option<String> {
        match self.charges {
            0 | 1 => None,
            2 => Some("CHARGED TWICE".into()),
            times => Some(format!("CHARGED {times} TIMES")),
        }
    }
}

impl fmt::Display for Totals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let customers = if self.doubled == 1 { "customer" } else { "customers" };
        write!(
            f,
            "{} orders, {} charges, {} {customers} charged twice",
            self.orders, self.charges, self.doubled
        )
    }
}

#[cfg(test)]
mod tests {
    use super::super::client::{ApiResponse, Try};
    use super::*;
    use http::StatusCode;

    fn order(name: &str, amount: u64) -> Order {
        Order { order: name.into(), amount }
    }

    fn charge(order: &str) -> Charge {
        Charge { id: "pay_1".into(), order: order.into(), amount: 1 }
    }

    fn ledger() -> Ledger {
        let created =
            Try::Answered(ApiResponse { status: StatusCode::CREATED, ..ApiResponse::default() });
        let held = Try::Answered(ApiResponse {
            status: StatusCode::BAD_GATEWAY,
            problem: Some("outcome-uncertain".into()),
            operation: Some("op_7".into()),
            ..ApiResponse::default()
        });
        let history = |tries: &[&Try]| PaymentTries {
            tries: tries.iter().map(|tried| (*tried).clone()).collect(),
            gave_up: false,
        };
        let rows = vec![
            (order("order-01", 995), history(&[&created])),
            (order("order-02", 12_000), history(&[&Try::TimedOut, &created])),
            (order("order-03", 5), history(&[&held])),
        ];
        Ledger::new(
            rows,
            &[
                charge("order-01"),
                charge("order-02"),
                charge("order-02"),
                charge("order-03"),
                charge("another"),
            ],
        )
    }

    #[test]
    fn the_table_is_aligned_and_marks_double_charges() {
        let expected = "
  order     amount  tries  charges   what the client saw
  ──────────────────────────────────────────────────────────────
  order-01    9.95      1        1   201
  order-02  120.00      2        2   timeout, then 201            ◀ CHARGED TWICE
  order-03    0.05      1        1   502 outcome-uncertain: held
";
        assert_eq!(format!("\n{}", ledger().table(false)), expected);
    }

    #[test]
    fn only_double_charges_are_coloured() {
        let coloured: Vec<bool> =
            ledger().table(true).lines().map(|line| line.contains(ALARM.0)).collect();
        assert_eq!(coloured, [false, false, false, true, false]);
    }

    #[test]
    fn totals_count_charges_and_those_who_paid_twice() {
        assert_eq!(ledger().totals().to_string(), "3 orders, 4 charges, 1 customer charged twice");
    }

    #[test]
    fn held_orders_are_listed_with_their_operation() {
        let ledger = ledger();
        let held: Vec<_> =
            ledger.held().map(|(order, operation)| (order.order.as_str(), operation)).collect();
        assert_eq!(held, [("order-03", "op_7")]);
    }
}

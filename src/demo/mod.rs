//! The demo: the same clients pay for the same orders, first directly at a payment API and then
//! through Onceward. Then a checkout of three steps is undone.
//!
//! Everything is real (sockets, a gateway as `onceward run` starts it, a store on disk), and
//! everything is in this process.

use std::fmt::Display;
use std::io::{self, IsTerminal, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use futures_util::future::join_all;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::app::{Gateway, Serve};
use crate::config::{Config, Overrides, Secret, Secrets};
use crate::entropy::Entropy;

mod api;
mod checkout;
mod client;
mod ledger;

use api::{Api, Charge, LEDGER, Order, PAYMENTS};
use checkout::CheckoutResult;
use ledger::{Ledger, Totals};

/// The number of orders.
const ORDERS: u64 = 20;

/// Runs the demo. Without `once` the gateway keeps running until it is interrupted.
///
/// # Errors
/// A part of the demo can't be started, or an order was charged more than once through the gateway.
pub async fn run(once: bool) -> Result<()> {
    let mut interrupted = Interrupted::listen()?;
    let scratch = Scratch::create()?;
    let demo = tokio::select! {
        demo = play(&scratch) => demo?,
        () = interrupted.wait() => bail!("interrupted before the end of the demo"),
    };
    if once {
        print_line(
            "\n`onceward demo` without --once keeps running: with a page for the browser that \
             shows the history",
        );
        print_line("of each order, and with curl commands to paste.");
    } else {
        demo.invite().await;
        interrupted.wait().await;
        print_line("\nThe demo is over; its files are removed.");
    }
    demo.gateway.stop();
    demo.gateway.ended().await;
    Ok(())
}

/// The parts that keep running after the tables are printed.
struct RunningDemo {
    api: Api,
    gateway: Gateway,
    /// The gateway's address for clients.
    listen: SocketAddr,
    ledger: Ledger,
}

async fn play(scratch: &Scratch) -> Result<RunningDemo> {
    print_line(format_args!(
        "\
Onceward demo: {ORDERS} customers pay for an order each, all at once, at a toy payment API.
For {} of them it is slower than they wait; for {} the connection breaks after the charge and
before the answer. Their clients do what clients do: send the same request again, with the
same Idempotency-Key.
",
        api::SLOW.len(),
        api::LOST.len()
    ));

    print_line("1. Without Onceward: straight at the API ...\n");
    let api = Api::start().await.context("the toy API can't start")?;
    let without = pay_all(&api, api.address).await;
    show(&without);

    print_line(
        "2. With Onceward: the same orders at the same API, afresh, through the gateway ...\n",
    );
    let api = Api::start().await.context("the toy API can't start")?;
    let gateway = start_gateway(&api, scratch).await?;
    let listen = gateway.listen.context("the gateway has no address for clients")?;
    let with = pay_all(&api, listen).await;
    show(&with);

    print_line(format_args!("without Onceward: {}", without.totals()));
    print_line(format_args!("with Onceward: {}", with.totals()));
    explain_held(&with);
    check(with.totals())?;

    print_line(
        "\n3. A saga: a checkout is three requests at three services, and the third is refused \
         ...\n",
    );
    let checkout = api.services().check_out(listen).await;
    print_line(&checkout);
    check_undone(&checkout)?;
    Ok(RunningDemo { api, gateway, listen, ledger: with })
}

/// Fails if an order was charged more than once. The demo checks this itself, because a demo with a
/// double charge must not look like a success.
fn check(with: Totals) -> Result<()> {
    if with.doubled > 0 {
        bail!(
            "{} of {} orders were charged more than once through the gateway. This must never \
             happen: please report it",
            with.doubled,
            with.orders
        );
    }
    Ok(())
}

/// Fails if the checkout was not undone as a whole.
fn check_undone(checkout: &CheckoutResult) -> Result<()> {
    if !checkout.is_undone() {
        bail!("the checkout was not undone as a whole. This must never happen: please report it");
    }
    print_line("with Onceward: the reservation and the charge are undone, each once");
    Ok(())
}

async fn start_gateway(api: &Api, scratch: &Scratch) -> Result<Gateway> {
    const FILE: (&str, &str) = ("gateway.toml", include_str!("gateway.toml"));
    let free_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).to_string();
    let overrides = Overrides {
        upstream: Some(format!("http://{}", api.address)),
        listen: Some(free_port.clone()),
        admin: Some(free_port),
        store: Some(format!("file:{}", scratch.0.join("store").display())),
    };
    let config = Config::load(Some(FILE), overrides).context("the demo's configuration")?;
    Gateway::start(config, secrets()?, Serve::ClientsAndOperators)
        .await
        .context("the gateway can't start")
}

/// Returns a key that seals what the store keeps. It ends with the demo, as the store does.
fn secrets() -> Result<Secrets> {
    let entropy = Entropy::from_system()?;
    let bytes: Vec<u8> = (0..4).flat_map(|_| entropy.next().to_be_bytes()).collect();
    let key = ("demo".to_owned(), Secret::new(BASE64.encode(bytes)));
    Ok(Secrets { encryption_keys: vec![key], ..Secrets::default() })
}

/// Pays for all orders at once, and returns the ledger with the API's charges.
async fn pay_all(api: &Api, server: SocketAddr) -> Ledger {
    let orders = (1..=ORDERS)
        .map(|number| Order { order: format!("order-{number:02}"), amount: amount(number) });
    let history = join_all(orders.map(async |order| {
        // One idempotency key for all tries.
        let history = client::send(server, PAYMENTS, &order.order, &json!(order)).await;
        (order, history)
    }));
    Ledger::new(history.await, &api.charges().await)
}

/// Returns a realistic amount in cents, between 9.95 and 99.94.
fn amount(number: u64) -> u64 {
    995 + number * 1733 % 9000
}

fn show(ledger: &Ledger) {
    let colours = io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none();
    print_line(ledger.table(colours));
}

fn explain_held(ledger: &Ledger) {
    let held: Vec<_> = ledger.held().collect();
    if held.is_empty() {
        return;
    }
    print_line(format_args!(
        "
{} payments are held: the connection broke after the request was sent, so only the API knows
whether it charged. Sending the request again could charge twice, so Onceward does not. It answers
outcome-uncertain until an operator looks up the payment and settles it:
  onceward operations resolve   it was charged: retries get the response that you enter
  onceward operations release   it was not charged: the next retry is sent
",
        held.len()
    ));
    for (order, operation) in held {
        print_line(format_args!("  {}  {operation}", order.order));
    }
}

impl RunningDemo {
    /// Prints commands for another terminal. They work without changes, in this order.
    async fn invite(&self) {
        let (api, listen, admin) = (self.api.address, self.listen, self.gateway.admin);
        let mine = Order { order: "my-order".into(), amount: 4200 };
        let dearer = Order { amount: 9900, ..mine.clone() };
        let first = pay(listen, "my-key", &mine);
        print_line(format_args!(
            "\nStill running: the gateway on {listen}, its admin port on {admin}, the API on {api}."
        ));
        print_line(format_args!("See in a browser what happened to each order: http://{admin}/"));
        print_line("Or paste these into another terminal, in this order:\n");
        print_line(format_args!("# A first payment: sent to the API, charged.\n{first}\n"));
        print_line(format_args!(
            "# Its retry: the stored response, with Idempotent-Replayed: true.\n{first}\n"
        ));
        print_line(format_args!(
            "# The same key for another payment: 422, and nothing is sent.\n{}\n",
            pay(listen, "my-key", &dearer)
        ));
        print_line(
            "# The held payments (or: onceward operations list --state uncertain, with this \
             --admin).",
        );
        print_line(format_args!("curl 'http://{admin}/v1/operations?state=uncertain'\n"));
        let charges = self.api.charges().await;
        let charge_of = |order: &Order| charges.iter().find(|charge| charge.order == order.order);
        let held = self
            .ledger
            .held()
            .find_map(|(order, operation)| Some((order, operation, charge_of(order)?)));
        if let Some((order, operation, charge)) = held {
            print_line(format_args!(
                "# The API's ledger: {} was charged.\ncurl http://{api}{LEDGER}\n",
                order.order
            ));
            print_line(format_args!(
                "# So settle it, with the response that was lost ...\n{}\n",
                resolve(admin, operation, charge)
            ));
            print_line(format_args!(
                "# ... which its client gets now.\n{}\n",
                pay(listen, &order.order, order)
            ));
        }
        print_line("Ctrl-C ends it.");
    }
}

fn pay(listen: SocketAddr, key: &str, order: &Order) -> String {
    let body = json!(order);
    format!(
        "curl -i http://{listen}{PAYMENTS} -H 'Content-Type: application/json' -H \
         'Idempotency-Key: {key}' \\\n    -d '{body}'"
    )
}

fn resolve(admin: SocketAddr, operation: &str, charge: &Charge) -> String {
    let body = BASE64.encode(charge.document());
    let stated = json!({ "status": 201, "body_base64": body, "reason": "found in the ledger" });
    let operation = format!("http://{admin}/v1/operations/{operation}");
    // If-Match makes the change fail if the operation has changed since it was read.
    let version = format!("If-Match: $(curl -so /dev/null -w '%header{{etag}}' {operation})");
    format!(
        "curl {operation}/resolve -H 'Content-Type: application/json' \\\n    -H \"{version}\" \
         \\\n    -d '{stated}'"
    )
}

/// Prints a line. A closed stdout is not an error.
fn print_line(text: impl Display) {
    let _ = writeln!(io::stdout(), "{text}");
}

/// The directory of the demo. It is removed with its content at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn create() -> Result<Scratch> {
        let path = std::env::temp_dir()
            .join(format!("onceward-demo-{:016x}", Entropy::from_system()?.next()));
        // This fails if the path exists, because the demo must not change or remove anything that
        // it did not create.
        let made = std::fs::DirBuilder::new().mode(0o700).create(&path);
        made.with_context(|| format!("can't make the directory {}", path.display()))?;
        Ok(Scratch(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("onceward: can't remove {}: {error}", self.0.display());
        }
    }
}

/// The signals Ctrl-C and SIGTERM. The demo removes its files before it ends.
struct Interrupted {
    interrupt: Signal,
    terminate: Signal,
}

impl Interrupted {
    fn listen() -> io::Result<Interrupted> {
        Ok(Interrupted {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_double_charge_through_the_gateway_fails_the_demo() {
        let totals = Totals { orders: 20, charges: 20, doubled: 0 };
        assert!(check(totals).is_ok());
        let error =
            check(Totals { charges: 21, doubled: 1, ..totals }).expect_err("a double charge");
        assert!(
            error.to_string().starts_with("1 of 20 orders were charged more than once"),
            "{error}"
        );
    }
}

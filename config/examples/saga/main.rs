//! A saga: a checkout reserves stock, charges a card and books a shipment. If the shipment is
//! refused, the charge and the reservation are undone.
//!
//!     cargo run --release --example saga -- [--stay] [FILE]
//!
//! Runs the services and a gateway with onceward.toml (or FILE) in this process, on free ports and
//! with a store in a temporary folder. Exits with 0 if each service executed the expected requests,
//! each once, and with 1 otherwise. With `--stay`, everything keeps running until Ctrl-C.

use std::collections::BTreeSet;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use onceward::app::{Gateway, Serve};
use onceward::config::{Config, Overrides, UpstreamUrl};
use serde_json::{Value, json};
use tokio::net::TcpStream;

use services::{Execution, Ledger, REFUSED_PLACE, ToyService};

mod services;

/// The orders, and the places to which they are shipped.
const ORDERS: [(&str, &str); 2] = [("order-1", "Bern"), ("order-2", REFUSED_PLACE)];

/// The statuses of the two checkouts.
const STATUSES: [u16; 2] = [201, 409];

/// The executions of a run without a fault, in their order.
const EXPECTED: [(&str, u16); 8] = [
    ("POST /v1/reservations", 201),
    ("POST /v1/charges", 201),
    ("POST /v1/shipments", 201),
    ("POST /v1/reservations", 201),
    ("POST /v1/charges", 201),
    ("POST /v1/shipments", 422),
    ("POST /v1/refunds", 201),
    ("DELETE /v1/reservations/reservation-of-order-2", 204),
];

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("saga: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Plays the story, and removes its files. Returns whether the executions are the expected ones.
async fn run() -> Result<bool> {
    let (flags, files): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument == "--stay");
    let folder = tempfile::tempdir().context("a folder for the store")?;
    let ledger = Ledger::default();
    let services = [
        ToyService::start(&ledger).await?,
        ToyService::start(&ledger).await?,
        ToyService::start(&ledger).await?,
    ];
    let store = format!("file:{}", folder.path().join("store").display());
    let gateway = start_gateway(files.first(), &services, store).await?;
    let listen = gateway.listen.context("the gateway serves clients")?;
    let is_right = tokio::select! {
        is_right = play(listen, &ledger) => is_right?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted before the end"),
    };
    if !flags.is_empty() {
        stay(listen, gateway.admin).await?;
    }
    gateway.stop();
    gateway.ended().await;
    Ok(is_right)
}

/// Checks out both orders, and prints the executions. Returns whether they are the expected ones.
async fn play(listen: SocketAddr, ledger: &Ledger) -> Result<bool> {
    println!(
        "Two customers check out. Each request is sent twice, with the same Idempotency-Key:\n"
    );
    let mut statuses = Vec::new();
    for (order, to) in ORDERS {
        let (status, answer) = check_out_twice(listen, order, to).await?;
        println!("  {order}  {} {}, and the same again, replayed", status.as_u16(), short(answer));
        statuses.push(status.as_u16());
    }
    let executions = ledger.executions();
    println!("\nWhat the services executed:\n");
    for Execution { line, key, request, status } in &executions {
        let request = if request.is_null() { "no body" } else { &*request.to_string() };
        println!("  {} {line}\n      {key}  {request}", status.as_u16());
    }
    println!();
    let lines: Vec<_> = executions.iter().map(|one| (&*one.line, one.status.as_u16())).collect();
    let keys: BTreeSet<_> = executions.iter().map(|one| &one.key).collect();
    let is_right = statuses == STATUSES && lines == EXPECTED && keys.len() == EXPECTED.len();
    if is_right {
        println!("order-1: reserved, charged and shipped.");
        println!(
            "order-2: the shipment was refused, so the charge and the reservation are undone."
        );
        println!("Each request was executed once, with a key of its own.");
    } else {
        println!("Wrong: expected the answers {STATUSES:?}, and these executions:");
        EXPECTED.iter().for_each(|(line, status)| println!("  {status} {line}"));
    }
    Ok(is_right)
}

/// Returns an answer, and of a problem document only the members that a program needs.
fn short(answer: Value) -> Value {
    match answer.get("type") {
        Some(kind) => {
            json!({ "type": kind, "step": answer["step"], "step_status": answer["step_status"] })
        }
        None => answer,
    }
}

/// Starts the gateway in front of the services.
async fn start_gateway(
    file: Option<&String>,
    services: &[ToyService; 3],
    store: String,
) -> Result<Gateway> {
    let (name, text) = match file {
        Some(name) => (&**name, std::fs::read_to_string(name).with_context(|| name.clone())?),
        None => ("onceward.toml", include_str!("onceward.toml").to_owned()),
    };
    let free_port = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).to_string();
    let overrides = Overrides {
        listen: Some(free_port.clone()),
        admin: Some(free_port),
        store: Some(store),
        ..Overrides::default()
    };
    let mut config = Config::load(Some((name, &text)), overrides)?;
    // The services have free ports in place of the ports in the file.
    let [stock, cards, carrier] = services.each_ref().map(|service| service.address);
    config.upstream.url = url_of(stock)?;
    for upstream in &mut config.upstreams {
        upstream.url = match &*upstream.name {
            "cards" => url_of(cards)?,
            "carrier" => url_of(carrier)?,
            other => bail!("there is no service for the upstream {other}"),
        };
    }
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|error| anyhow!("no random bytes for a key: {error}"))?;
    let secrets = config
        .resolve_secrets(|name| (name == "ONCEWARD_KEY_2026_11").then(|| BASE64.encode(key)))?;
    let serve = Serve::ClientsAndOperators;
    Gateway::start(config, secrets, serve).await.context("the gateway can't start")
}

fn url_of(address: SocketAddr) -> Result<UpstreamUrl> {
    UpstreamUrl::parse(&format!("http://{address}")).map_err(anyhow::Error::msg)
}

/// Checks out an order, and sends the same request again. Returns the answer of both.
async fn check_out_twice(
    gateway: SocketAddr,
    order: &str,
    to: &str,
) -> Result<(StatusCode, Value)> {
    let (status, answer, _) = check_out(gateway, order, to).await?;
    let (again, same, is_replayed) = check_out(gateway, order, to).await?;
    if status != again || answer != same || !is_replayed {
        bail!("{order}: the duplicate got {again} {same} after {status} {answer}");
    }
    Ok((status, answer))
}

/// Sends a checkout through the gateway. Returns the status, the body, and whether the answer is
/// the stored one to an earlier request.
async fn check_out(
    gateway: SocketAddr,
    order: &str,
    to: &str,
) -> Result<(StatusCode, Value, bool)> {
    let body = json!({ "order": order, "sku": "A/1", "amount": 2500, "to": to }).to_string();
    let request = Request::post("/v1/checkouts")
        .header(HOST, gateway.to_string())
        .header(CONTENT_TYPE, "application/json")
        .header("idempotency-key", format!("checkout-{order}"))
        .body(Full::<Bytes>::from(body))?;
    let stream = TcpStream::connect(gateway).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let is_replayed = head.headers.contains_key("idempotent-replayed");
        let body = body.collect().await?.to_bytes();
        Ok((head.status, serde_json::from_slice(&body)?, is_replayed))
    };
    // The connection ends together with its sender.
    tokio::join!(exchange, connection).0
}

/// Prints where to look, and waits for Ctrl-C.
async fn stay(listen: SocketAddr, admin: SocketAddr) -> Result<()> {
    println!("\nStill running: the gateway on {listen}, its admin port on {admin}. Look at:\n");
    println!("  http://{admin}/ in a browser");
    println!("  onceward operations list --admin {admin}");
    println!("\nCtrl-C ends it.");
    tokio::signal::ctrl_c().await.context("Ctrl-C")
}

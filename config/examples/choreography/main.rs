//! Choreography: a payment books a shipment, and a refused shipment refunds the payment. Three
//! services do that without calling each other.
//!
//!     cargo run --release --example choreography -- [--stay] [FILE]
//!
//! Runs the services and a gateway with onceward.toml (or FILE) in this process, on free ports and
//! with a store in a temporary folder. Exits with 0 if each service executed each request once, and
//! with 1 otherwise. With `--stay`, everything keeps running until Ctrl-C.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HOST};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use onceward::admin::client::{Client, DeadLettersOf};
use onceward::admin::{DeadLetterView, SinkView};
use onceward::app::{Gateway, Serve};
use onceward::config::{Config, Overrides, UpstreamUrl};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::time::Instant;

use services::{Execution, ToyService};

mod services;

/// The orders of the two customers, with their amounts in cents.
const ORDERS: [(&str, u64); 2] = [("order-1", 2500), ("order-2", 4200)];

/// The credentials of the gateway at the two services that it calls.
const SHIPMENTS_AUTHORIZATION: &str = "Bearer a-token-for-shipments";
const REFUNDS_AUTHORIZATION: &str = "Bearer a-token-for-refunds";

/// The facts of an execution: path, order, payment (of calls) and status.
type Fact<'f> = (&'f str, &'f str, Option<&'f str>, u16);

/// The executions of a run without a fault.
const EXPECTED: [Fact<'static>; 5] = [
    ("/v1/payments", "order-1", None, 201),
    ("/v1/payments", "order-2", None, 201),
    ("/v1/shipments", "order-1", Some("payment-1"), 201),
    ("/v1/shipments", "order-2", Some("payment-2"), 422),
    ("/v1/refunds", "order-2", Some("payment-2"), 201),
];

/// The longest wait for the last delivery. It normally takes some milliseconds.
const DELIVERY_MAX: Duration = Duration::from_secs(60);
/// The pause between two looks at the sinks.
const LOOK_PAUSE: Duration = Duration::from_millis(20);

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("choreography: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Plays the story, and removes its files. Returns whether each service executed each request once.
async fn run() -> Result<bool> {
    let (flags, files): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument == "--stay");
    let folder = tempfile::tempdir().context("a folder for the store")?;
    let services = [
        ToyService::start("/v1/payments", None, services::charge).await?,
        ToyService::start("/v1/shipments", Some(SHIPMENTS_AUTHORIZATION), services::ship).await?,
        ToyService::start("/v1/refunds", Some(REFUNDS_AUTHORIZATION), services::refund).await?,
    ];
    let store = format!("file:{}", folder.path().join("store").display());
    let gateway = start_gateway(files.first(), &services, store).await?;
    let listen = gateway.listen.context("the gateway serves clients")?;
    let is_right = tokio::select! {
        is_right = play(listen, gateway.admin, &services) => is_right?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted before the end"),
    };
    if !flags.is_empty() {
        stay(listen, gateway.admin).await?;
    }
    gateway.stop();
    gateway.ended().await;
    Ok(is_right)
}

/// Pays for both orders, waits for the calls, and prints the executions. Returns whether they are
/// the expected ones.
async fn play(listen: SocketAddr, admin: SocketAddr, services: &[ToyService; 3]) -> Result<bool> {
    println!("Two customers pay. Each request is sent twice, with the same Idempotency-Key:\n");
    for (order, amount) in ORDERS {
        println!("  {order}  {}", pay_twice(listen, order, amount).await?);
    }
    let admin = Client::new(admin.to_string(), None);
    let undelivered = undelivered(&admin).await?;

    println!("\nWhat the services executed:\n");
    for (service, execution) in all_executions(services) {
        let Execution { key, request, status, answer } = execution;
        println!(
            "  POST {:<14} {key}\n    {request}\n    {} {answer}",
            service.path,
            status.as_u16()
        );
    }
    println!();
    let differences = [undelivered, differences(services)].concat();
    for difference in &differences {
        println!("Wrong: {difference}");
    }
    if differences.is_empty() {
        println!("order-1: paid and shipped. No refund.");
        println!("order-2: paid, the shipment was refused, and the payment was refunded once.");
        println!("Each service executed each request once.");
    }
    Ok(differences.is_empty())
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
    let [payments, shipments, refunds] = services.each_ref().map(|service| service.address);
    config.upstream.url = url_of(payments)?;
    for upstream in &mut config.upstreams {
        upstream.url = match &*upstream.name {
            "shipments" => url_of(shipments)?,
            "refunds" => url_of(refunds)?,
            other => bail!("there is no service for the upstream {other}"),
        };
    }
    let mut key = [0; 32];
    getrandom::fill(&mut key).map_err(|error| anyhow!("no random bytes for a key: {error}"))?;
    let secrets = config.resolve_secrets(|name| match name {
        "ONCEWARD_KEY_2026_11" => Some(BASE64.encode(key)),
        "SHIPMENTS_AUTHORIZATION" => Some(SHIPMENTS_AUTHORIZATION.to_owned()),
        "REFUNDS_AUTHORIZATION" => Some(REFUNDS_AUTHORIZATION.to_owned()),
        _ => None,
    })?;
    let serve = Serve::ClientsAndOperators;
    Gateway::start(config, secrets, serve).await.context("the gateway can't start")
}

fn url_of(address: SocketAddr) -> Result<UpstreamUrl> {
    UpstreamUrl::parse(&format!("http://{address}")).map_err(anyhow::Error::msg)
}

/// Pays for an order, and sends the same request again. Returns a description of the answers.
async fn pay_twice(gateway: SocketAddr, order: &str, amount: u64) -> Result<String> {
    let (status, answer, _) = pay(gateway, order, amount).await?;
    let (again, same, is_replayed) = pay(gateway, order, amount).await?;
    if status != again || answer != same || !is_replayed {
        bail!("{order}: the duplicate got {again} {same} after {status} {answer}");
    }
    Ok(format!("{} {answer}, and the same again, replayed", status.as_u16()))
}

/// Sends a payment through the gateway. Returns the status, the body, and whether the answer is the
/// stored one to an earlier request.
async fn pay(gateway: SocketAddr, order: &str, amount: u64) -> Result<(StatusCode, Value, bool)> {
    let body = json!({ "order": order, "amount": amount }).to_string();
    let request = Request::post("/v1/payments")
        .header(HOST, gateway.to_string())
        .header(CONTENT_TYPE, "application/json")
        .header("idempotency-key", format!("pay-{order}"))
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

/// Waits until no event waits any more. Returns a description of each event that still waits or is
/// a dead letter.
async fn undelivered(admin: &Client) -> Result<Vec<String>> {
    let deadline = Instant::now() + DELIVERY_MAX;
    // Sinks are not counted at one moment. Between two counts, an event can lead to another one,
    // which the next look finds.
    let mut idle_looks = 0;
    let waiting = loop {
        let sinks = admin.sinks().await?.sinks.into_iter();
        let waiting: Vec<_> = sinks.filter(|sink| sink.backlog > 0).collect();
        idle_looks = if waiting.is_empty() { idle_looks + 1 } else { 0 };
        if idle_looks == 2 || Instant::now() > deadline {
            break waiting;
        }
        tokio::time::sleep(LOOK_PAUSE).await;
    };
    let waiting = waiting.iter().map(|SinkView { name, backlog, .. }| {
        format!("after {DELIVERY_MAX:?}, the sink {name} has {backlog} events that wait")
    });
    let dead_letters = admin.dead_letters(&DeadLettersOf::default(), 100, None).await?.dead_letters;
    let describe = |letter: &DeadLetterView| {
        let attempts = &letter.attempts;
        let status = attempts.status.map_or(String::new(), |status| format!("{status}, "));
        let error = attempts.error.as_deref().unwrap_or_default();
        format!("a dead letter of the sink {}: {status}{error}", letter.sink)
    };
    Ok(waiting.chain(dead_letters.iter().map(describe)).collect())
}

fn all_executions(services: &[ToyService; 3]) -> Vec<(&ToyService, Execution)> {
    let of = |service| ToyService::executions(service).into_iter().map(move |one| (service, one));
    services.iter().flat_map(of).collect()
}

/// Compares the executions with the expected ones. Returns a description of each difference.
fn differences(services: &[ToyService; 3]) -> Vec<String> {
    let executions = all_executions(services);
    let facts: Vec<Fact<'_>> = executions
        .iter()
        .map(|(service, execution)| {
            let payment = execution.request["payment"].as_str();
            (service.path, execution.order(), payment, execution.status.as_u16())
        })
        .collect();
    let describe = |(path, order, payment, status): &Fact<'_>| {
        let payment = payment.map_or(String::new(), |payment| format!(" ({payment})"));
        format!("POST {path} for {order}{payment} with the answer {status}")
    };
    let count = |fact: &Fact<'_>| facts.iter().filter(|other| *other == fact).count();
    let missing = EXPECTED.iter().filter(|fact| count(fact) != 1).map(|fact| {
        let times = count(fact);
        format!("{} was executed {times} times, and not once", describe(fact))
    });
    let unexpected = facts
        .iter()
        .filter(|fact| !EXPECTED.contains(fact))
        .map(|fact| format!("{} was not expected", describe(fact)));
    missing.chain(unexpected).collect()
}

/// Prints where to look, and waits for Ctrl-C.
async fn stay(listen: SocketAddr, admin: SocketAddr) -> Result<()> {
    println!("\nStill running: the gateway on {listen}, its admin port on {admin}. Look at:\n");
    println!("  http://{admin}/ in a browser");
    for command in ["operations list", "sinks list", "dead-letters list"] {
        println!("  onceward {command} --admin {admin}");
    }
    println!("\nCtrl-C ends it.");
    tokio::signal::ctrl_c().await.context("Ctrl-C")
}

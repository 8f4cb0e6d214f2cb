//! Optimistic locking: two people change one subscription, of an API without versions.
//!
//!     cargo run --release --example optimistic-locking -- [--stay] [FILE]
//!
//! Runs the API and a gateway with onceward.toml (or FILE) in this process, on free ports and with
//! a store in a temporary folder. Exits with 0 if no change is lost, and with 1 otherwise. With
//! `--stay`, everything keeps running until Ctrl-C.

use std::net::{Ipv4Addr, SocketAddr};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use axum::extract::State;
use axum::routing::get;
use axum::{Json, Router};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, HOST, IF_MATCH};
use http::{HeaderMap, Method, Request};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use onceward::app::{Gateway, Serve};
use onceward::config::{Config, Overrides, UpstreamUrl};
use serde_json::{Map, Value, json};
use tokio::net::{TcpListener, TcpStream};

const PATH: &str = "/v1/subscriptions/s1";

/// The statuses of the writes of the story, and the document after it.
const EXPECTED: [u16; 4] = [200, 412, 200, 200];

/// The document of the API, which has no version.
type Document = Arc<Mutex<Value>>;

/// What a client got.
struct Answer {
    status: u16,
    headers: HeaderMap,
    body: Value,
}

#[tokio::main]
async fn main() -> ExitCode {
    match run().await {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("optimistic-locking: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Plays the story, and removes its files. Returns whether no change is lost.
async fn run() -> Result<bool> {
    let (flags, files): (Vec<_>, Vec<_>) =
        std::env::args().skip(1).partition(|argument| argument == "--stay");
    let folder = tempfile::tempdir().context("a folder for the store")?;
    let document: Document = Arc::new(Mutex::new(json!({ "plan": "basic", "seats": 5 })));
    let api = start_api(document.clone()).await?;
    let store = format!("file:{}", folder.path().join("store").display());
    let gateway = start_gateway(files.first(), api, store).await?;
    let listen = gateway.listen.context("the gateway serves clients")?;
    let is_right = tokio::select! {
        is_right = play(listen, &document) => is_right?,
        _ = tokio::signal::ctrl_c() => bail!("interrupted before the end"),
    };
    if !flags.is_empty() {
        println!("\nStill running: the gateway on {listen}, its admin port on {}.", gateway.admin);
        println!("In two terminals: curl -i http://{listen}{PATH}");
        println!("Then change it with -X PUT, -H 'If-Match: TAG' and -d '{{\"plan\":\"pro\"}}'.");
        println!("\nCtrl-C ends it.");
        tokio::signal::ctrl_c().await.context("Ctrl-C")?;
    }
    gateway.stop();
    gateway.ended().await;
    Ok(is_right)
}

/// Ann and Ben change the subscription. Returns whether both changes are there in the end.
async fn play(gateway: SocketAddr, document: &Document) -> Result<bool> {
    println!("Ann and Ben read the same subscription:\n");
    let read = send(gateway, Method::GET, None, None).await?;
    let tag = tag_of(&read)?;
    println!("  GET {PATH}\n    {} {}  ETag: {tag}\n", read.status, read.body);

    let anns = json!({ "plan": "pro", "seats": 5 });
    let ann = put(gateway, "Ann", &tag, &anns).await?;
    let bens = json!({ "plan": "basic", "seats": 20 });
    println!("Ben does not know of it. His PUT would take the plan back:\n");
    let ben = put(gateway, "Ben", &tag, &bens).await?;

    println!("He reads again, and decides again:\n");
    let read = send(gateway, Method::GET, None, None).await?;
    let mut bens = read.body.clone();
    bens["seats"] = json!(20);
    let again = put(gateway, "Ben", &tag_of(&read)?, &bens).await?;

    println!("Ann still has the first version on her screen. Her patch changes another member:\n");
    let note = json!({ "note": "called on Monday" });
    let merged = send(gateway, Method::PATCH, Some(&tag), Some(&note)).await?;
    let is_merged = merged.headers.get("onceward-merged").is_some();
    println!("  PATCH by Ann, If-Match: {tag}  {note}");
    println!(
        "    {} {}{}\n",
        merged.status,
        merged.body,
        if is_merged { "  Onceward-Merged: true" } else { "" }
    );

    let statuses = [ann.status, ben.status, again.status, merged.status];
    let is_last = *document.lock().unwrap_or_else(PoisonError::into_inner)
        == json!({ "plan": "pro", "seats": 20, "note": "called on Monday" });
    if statuses == EXPECTED && is_merged && is_last {
        println!("All three changes are there, and the API has no versions.");
        return Ok(true);
    }
    println!("Wrong: expected the statuses {EXPECTED:?}, and all three changes.");
    Ok(false)
}

async fn put(gateway: SocketAddr, who: &str, tag: &str, document: &Value) -> Result<Answer> {
    let answer = send(gateway, Method::PUT, Some(tag), Some(document)).await?;
    println!("  PUT by {who}, If-Match: {tag}  {document}");
    let shown = answer.body.get("detail").unwrap_or(&answer.body);
    println!("    {} {shown}\n", answer.status);
    Ok(answer)
}

fn tag_of(answer: &Answer) -> Result<String> {
    let tag = answer.headers.get(ETAG).context("the answer has no ETag")?;
    Ok(tag.to_str()?.to_owned())
}

/// Sends a request through the gateway.
async fn send(
    gateway: SocketAddr,
    method: Method,
    tag: Option<&str>,
    body: Option<&Value>,
) -> Result<Answer> {
    let media = match method {
        Method::PATCH => "application/merge-patch+json",
        _ => "application/json",
    };
    let mut request = Request::builder().method(method).uri(PATH).header(HOST, gateway.to_string());
    if let Some(tag) = tag {
        request = request.header(IF_MATCH, tag);
    }
    if body.is_some() {
        request = request.header(CONTENT_TYPE, media);
    }
    let body = body.map(Value::to_string).unwrap_or_default();
    let request = request.body(Full::<Bytes>::from(body))?;
    let stream = TcpStream::connect(gateway).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let exchange = async move {
        let (head, body) = sender.send_request(request).await?.into_parts();
        let body = serde_json::from_slice(&body.collect().await?.to_bytes())?;
        Ok(Answer { status: head.status.as_u16(), headers: head.headers, body })
    };
    // The connection ends together with its sender.
    tokio::join!(exchange, connection).0
}

/// Starts an API with one document: no tags, no conditions, the last write wins.
async fn start_api(document: Document) -> Result<SocketAddr> {
    let read = |State(document): State<Document>| async move {
        Json(document.lock().unwrap_or_else(PoisonError::into_inner).clone())
    };
    let replace = |State(document): State<Document>, body: Bytes| async move {
        let sent = serde_json::from_slice(&body).unwrap_or(Value::Null);
        *document.lock().unwrap_or_else(PoisonError::into_inner) = sent.clone();
        Json(sent)
    };
    let patch = |State(document): State<Document>, body: Bytes| async move {
        let sent: Map<String, Value> = serde_json::from_slice(&body).unwrap_or_default();
        let mut document = document.lock().unwrap_or_else(PoisonError::into_inner);
        sent.into_iter().for_each(|(name, value)| document[name] = value);
        Json(document.clone())
    };
    let api = Router::new().route(PATH, get(read).put(replace).patch(patch)).with_state(document);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let address = listener.local_addr()?;
    tokio::spawn(async move { axum::serve(listener, api).await });
    Ok(address)
}

/// Starts the gateway in front of the API.
async fn start_gateway(file: Option<&String>, api: SocketAddr, store: String) -> Result<Gateway> {
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
    // The API has a free port in place of the port in the file.
    config.upstream.url =
        UpstreamUrl::parse(&format!("http://{api}")).map_err(anyhow::Error::msg)?;
    let secrets = config.resolve_secrets(|_| None)?;
    Gateway::start(config, secrets, Serve::ClientsAndOperators)
        .await
        .context("the gateway can't start")
}

//! Gateways with wall clocks that are hours apart, on one Redis. They run in this process, because
//! another process would use the machine's clock. Each has its own runtime and ends with it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt, Full};
use onceward::clock::{Clock, ManualClock};
use onceward::config::{Config, Overrides};
use onceward::entropy::Entropy;
use onceward::gate::{BoxError, Gate, Payload, Settings, sweep};
use onceward::layer::{LayerSettings, OncewardLayer};
use onceward::refusal::RefusalRenderer;
use onceward::route::Route;
use onceward::store::redis::{Endpoint, Redis, RedisAck, RedisOptions};
use onceward::telemetry::Meter;
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tower::util::BoxCloneService;
use tower::{Layer, ServiceExt, service_fn};

use crate::harness::{Answer, RedisServer, until};

const LEASE: Duration = Duration::from_secs(3);

const ROUTES: &str = r#"
[[routes]]
name = "payments"
path = "/v1/payments"
lease = "3s"
retention = "1h"
[[routes]]
name = "short"
path = "/v1/short"
retention = "2s"
"#;

const HOUR_MS: u64 = 3_600_000;

/// The time by the machine's clock, which is also the store's.
fn true_ms() -> u64 {
    Clock::system().unix_ms()
}

/// The parts that all gateways share: the store, and the upstream that counts.
struct World {
    redis: RedisServer,
    upstream: Arc<Upstream>,
}

struct Upstream {
    executed: AtomicUsize,
    released: watch::Sender<bool>,
}

/// A gateway with its own wall clock.
struct Machine {
    service: BoxCloneService<Request<Full<Bytes>>, Answer, Infallible>,
    wall: Arc<ManualClock>,
    runtime: Option<Runtime>,
}

impl World {
    fn new() -> World {
        let upstream =
            Upstream { executed: AtomicUsize::new(0), released: watch::Sender::new(false) };
        World { redis: RedisServer::start(), upstream: Arc::new(upstream) }
    }

    fn executed(&self) -> usize {
        self.upstream.executed.load(Ordering::SeqCst)
    }

    /// Starts one gateway six hours behind, and one six hours ahead.
    fn slow_and_fast(&self) -> [Machine; 2] {
        [
            self.machine(7, true_ms() - 6 * HOUR_MS),
            self.machine(9_000 * HOUR_MS, true_ms() + 6 * HOUR_MS),
        ]
    }

    fn machine(&self, boot_ms: u64, unix_ms: u64) -> Machine {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let _inside = runtime.enter();
        let (clock, wall) = Clock::manual(boot_ms, unix_ms);
        let options = RedisOptions {
            endpoint: Endpoint::Server(self.redis.url()),
            timeout: Duration::from_secs(5),
            ca_file: None,
            client: None,
            ack: RedisAck::Memory,
            loss_pause: Duration::ZERO,
            breakers: Default::default(),
            namespace: "onceward".into(),
            features: Default::default(),
        };
        let store = Redis::connect(options).unwrap();
        let gate = Gate::new(
            store,
            clock,
            Entropy::from_system().unwrap(),
            Meter::new(),
            Settings::default(),
        );
        let overrides =
            Overrides { upstream: Some("http://localhost".into()), ..Overrides::default() };
        let config = Config::load(Some(("routes", ROUTES)), overrides).unwrap();
        let policies: HashMap<_, _> =
            config.routes.iter().map(|route| (route.name.clone(), route.policy.clone())).collect();
        runtime.spawn(sweep(gate.clone(), policies, config.routes[0].policy.clone()));
        let routes = config.routes.into_iter().map(|route| {
            let route = Route {
                paths: route.paths,
                methods: route.methods,
                upstream: 0,
                policy: route.policy,
            };
            (route, Duration::from_secs(60))
        });
        let settings = LayerSettings {
            routes: routes.collect(),
            keyrings: HashMap::new(),
            sagas: HashMap::new(),
            renderer: RefusalRenderer::default(),
            publish_policy: false,
            body_timeout: Duration::from_secs(30),
            silence: Duration::from_secs(60),
        };
        let upstream = self.upstream.clone();
        let charge = service_fn(move |request| execute(upstream.clone(), request));
        let once = OncewardLayer::new(gate, settings).unwrap().layer(charge);
        let service = once.and_then(|response| async { Ok(Answer::read(response).await.unwrap()) });
        Machine { service: BoxCloneService::new(service), wall, runtime: Some(runtime) }
    }
}

async fn execute(
    upstream: Arc<Upstream>,
    request: Request<Payload<Full<Bytes>>>,
) -> Result<Response<Full<Bytes>>, BoxError> {
    let n = upstream.executed.fetch_add(1, Ordering::SeqCst);
    if request.headers().contains_key("x-hold") {
        upstream.released.subscribe().wait_for(|released| *released).await?;
    }
    // Reading the body checks the send rule again.
    request.into_body().collect().await?;
    Ok(Response::builder().status(201).body(Full::new(format!("payment {n}").into()))?)
}

fn pay(path: &str, key: &str) -> Request<Full<Bytes>> {
    Request::post(path)
        .header("idempotency-key", key)
        .body(Full::new(Bytes::from_static(b"{}")))
        .unwrap()
}

fn held(key: &str) -> Request<Full<Bytes>> {
    let mut request = pay("/v1/payments", key);
    request.headers_mut().insert("x-hold", http::HeaderValue::from_static("yes"));
    request
}

impl Machine {
    fn runtime(&self) -> &Runtime {
        self.runtime.as_ref().unwrap()
    }

    fn begin(&self, request: Request<Full<Bytes>>) -> JoinHandle<Result<Answer, Infallible>> {
        self.runtime().spawn(self.service.clone().oneshot(request))
    }

    fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        self.wait(self.begin(request))
    }

    fn wait(&self, answer: JoinHandle<Result<Answer, Infallible>>) -> Answer {
        self.runtime().block_on(answer).unwrap().unwrap()
    }

    /// Ends the gateway at once, as if its process were killed.
    fn die(mut self) {
        self.runtime.take().unwrap().shutdown_background();
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

#[test]
fn a_lease_ends_by_the_stores_clock_whatever_the_gateways_think_the_time_is() {
    for (first, key) in [(0, "slow-dies"), (1, "fast-dies")] {
        let world = World::new();
        let mut machines = Vec::from(world.slow_and_fast());
        let dies = machines.remove(first);
        let watches = machines.remove(0);
        let began = Instant::now();
        let _lost = dies.begin(held(key));
        until("the charge", || world.executed() == 1);
        assert_eq!(watches.send(held(key)).problem(), "in-flight", "{key}");
        dies.die();
        until("the lease to end", || watches.send(held(key)).problem() == "outcome-uncertain");
        assert!(began.elapsed() >= LEASE, "{key}: {:?}", began.elapsed());
        assert_eq!(world.executed(), 1);
    }
}

#[test]
fn what_one_gateway_stored_the_other_replays_for_as_long_as_the_store_counts() {
    let world = World::new();
    let [slow, fast] = world.slow_and_fast();
    let mut dates = vec![];
    for (key, writes, reads) in [("a", &slow, &fast), ("b", &fast, &slow)] {
        let first = writes.send(pay("/v1/payments", key));
        let second = reads.send(pay("/v1/payments", key));
        assert!(
            first.status == 201 && second.replayed() && second.body == first.body,
            "{key}: {second:?}"
        );
        assert_eq!(second.get("date"), first.get("date"));
        dates.push(httpdate::parse_http_date(first.get("date").unwrap()).unwrap());
        let records = world.redis.cli(&["--scan", "--pattern", "onceward:*:r:*"]);
        for record in records.lines() {
            let left: u64 = world.redis.cli(&["pttl", record]).parse().unwrap();
            assert!((HOUR_MS - 60_000..=HOUR_MS).contains(&left), "{key}: {left} ms of an hour");
        }
    }
    assert!(
        dates[1].duration_since(dates[0]).unwrap() > Duration::from_secs(11 * 3600),
        "the clocks are apart"
    );

    for (key, writes, reads) in [("c", &slow, &fast), ("d", &fast, &slow)] {
        let began = Instant::now();
        let first = writes.send(pay("/v1/short", key));
        assert!(reads.send(pay("/v1/short", key)).body == first.body);
        until("the retention to end", || reads.send(pay("/v1/short", key)).body != first.body);
        assert!(began.elapsed() >= Duration::from_secs(2), "{key}: {:?}", began.elapsed());
    }
    assert_eq!(world.executed(), 6);
}

#[test]
fn a_wall_clock_that_jumps_while_the_upstream_works_changes_nothing() {
    for jumped_ms in [true_ms() - 7 * HOUR_MS, true_ms() + 7 * HOUR_MS] {
        let world = World::new();
        let [slow, fast] = world.slow_and_fast();
        let running = slow.begin(held("k"));
        until("the charge", || world.executed() == 1);
        slow.wall.set_unix_ms(jumped_ms);
        assert_eq!(slow.send(held("k")).problem(), "in-flight");
        world.upstream.released.send_replace(true);
        let first = slow.wait(running);
        assert_eq!(first.status, 201, "{}", first.text());
        for machine in [&slow, &fast] {
            let again = machine.send(pay("/v1/payments", "k"));
            assert!(again.replayed() && again.body == first.body);
        }
        assert_eq!(world.executed(), 1);
    }
}

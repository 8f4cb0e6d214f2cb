//! A gateway: the real gate, sweeper and reconciler, over this world's store, upstream and clocks.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use onceward::clock::Clock;
use onceward::entropy::Entropy;
use onceward::gate::{Gate, Payload, ProtectedRoute, Settings, reconcile, sweep};
use onceward::route::Route;
use onceward::store::sealed::{KEY_BYTES, Sealed, SealingKey};
use onceward::store::{Records, Store};
use onceward::telemetry::Meter;

use super::link::Link;
use super::plan::ANSWER_MAX;
use super::process::{Process, Stand};
use super::recent::Recent;
use super::wire::Wire;
use super::world::{Gateway, World};

impl World {
    /// Starts a gateway's process.
    pub fn start(self: &Arc<World>, gateway: usize, life: usize) -> Gateway {
        let wall_off_ms = self.dice.below(7_200_000) as i64 - 3_600_000;
        let process = Process::start(gateway, life, wall_off_ms);
        let link = Arc::new(Link {
            world: self.clone(),
            process: process.clone(),
            recent: Recent::default(),
        });
        if self.plan.loses {
            let (watches, watcher) = (process.clone(), link.clone());
            tokio::spawn(async move { watches.within(watcher.keep_watch()).await });
        }
        let way = link.clone();
        let link: Arc<dyn Records> = link;
        let records = if self.plan.sealed {
            let key = SealingKey::new("a", &[7; KEY_BYTES]).unwrap();
            Arc::new(Sealed::new(link, vec![key]).unwrap())
        } else {
            link
        };
        let store = Store { records, ..Store::from(self.store.clone()) };
        let meter = Meter::new();
        let settings = Settings {
            response_body: ANSWER_MAX,
            in_flight: 64,
            waiters: 64,
            ..Settings::default()
        };
        let entropy = Entropy::from_seed(self.dice.next());
        let gate = Gate::new(store, self.clock(&process), entropy, meter.clone(), settings);
        let policy = self.plan.policy.clone();
        let route = Route {
            paths: vec!["/payments".into()],
            methods: vec![Method::POST],
            upstream: 0,
            policy: policy.clone(),
        };
        let response_timeout = self.plan.response_timeout;
        let guarded = Arc::new(ProtectedRoute {
            route: Arc::new(route),
            response_timeout,
            meter: meter.route("payments"),
            keyring: None,
            saga: None,
            unkeyed: None,
        });
        let deliveries = self.start_deliveries(&way, &gate);
        let wire = Wire { world: self.clone(), process: process.clone() };
        let started = Gateway {
            process: process.clone(),
            gate: gate.clone(),
            guarded: guarded.clone(),
            wire: wire.clone(),
            deliveries,
        };
        let (sweeps, swept) = (process.clone(), gate.clone());
        tokio::spawn(async move {
            let policies = HashMap::from([(policy.route.to_string(), policy.clone())]);
            sweeps.within(sweep(swept, policies, policy)).await
        });
        tokio::spawn(async move {
            let prepare = |_: &ProtectedRoute, _: &mut Request<Payload<Full<Bytes>>>| {};
            process.within(reconcile(gate, vec![guarded], prepare, wire)).await
        });
        started
    }

    pub fn clock(self: &Arc<World>, process: &Arc<Process>) -> Clock {
        let (world, own) = (self.clone(), process.clone());
        let boot_ms = Arc::new(move || world.boot_ms(&own));
        let (world, own) = (self.clone(), process.clone());
        Clock::given(boot_ms, Arc::new(move || world.wall_ms(&own)))
    }

    /// Returns the running gateway at a place.
    pub fn gateway(&self, gateway: usize) -> Gateway {
        self.book().gateways[gateway].clone()
    }

    /// Starts the dead gateways again.
    pub fn restart(self: &Arc<World>) {
        for place in 0..self.plan.gateways {
            let process = self.gateway(place).process;
            if process.stand() == Stand::Dead {
                let started = self.start(place, process.life + 1);
                self.book().gateways[place] = started;
            }
        }
    }
}

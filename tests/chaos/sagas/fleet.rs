//! Gateways over one store in front of the services, and what happens to them.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::plan::{SERVICES, sagas};
use super::services::Service;
use crate::dice::Dice;
use crate::faultproxy::{Cut, FaultProxy, Mode, Way};
use crate::harness::{Answer, Connection, Gateway, Request, until};
use crate::stores::{Kind, Manner, Store};
use crate::{now, pause};

/// The store of a fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Over {
    /// A file, with one gateway.
    File,
    /// One Redis, with two gateways.
    Redis,
}

impl Over {
    pub fn gateways(self) -> usize {
        match self {
            Over::File => 1,
            Over::Redis => crate::GATEWAYS,
        }
    }
}

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A gateway is killed and started again.
    Kill,
    /// A gateway is stopped for a moment.
    Stop,
    /// A gateway is stopped for longer than the lease of its sagas.
    Sleep,
    /// Redis is stopped for a moment.
    FreezeStore,
    /// Redis is killed, and starts again with its data.
    KillStore,
    /// Connections to Redis are cut.
    CutStore,
    /// A service crashes, and is away for a moment.
    Crash,
    /// Connections between a gateway and a service are cut.
    CutWay,
    /// Bytes between a gateway and a service are lost.
    PartWay,
}

/// The lease of a saga in ms: a gateway that sleeps for longer loses its sagas.
const SAGA_LEASE_MS: u64 = 10_000;

/// Gateways with everything around them.
pub struct Fleet {
    pub over: Over,
    pub services: [Service; 3],
    /// The ways from each gateway to each service.
    ways: Vec<[FaultProxy; 3]>,
    gateways: Vec<Mutex<Gateway>>,
    /// The ports of each gateway: for clients, and for operators.
    pub ports: Vec<(u16, u16)>,
    store: Option<Store>,
    /// The times in which something failed.
    pub troubles: Mutex<Vec<(Fault, Duration, Duration)>>,
    _folder: TempDir,
    runtime: Option<Runtime>,
}

impl Fleet {
    pub fn start(over: Over, dice: &Dice) -> Fleet {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let services = Service::all(&dice.of("services"));
        let folder = tempfile::tempdir().unwrap();
        let store = (over == Over::Redis).then(|| Store::start(Kind::Standalone, runtime.handle()));
        let listen = |service: &Service| FaultProxy::listen(runtime.handle(), service.port);
        let ways: Vec<[FaultProxy; 3]> =
            (0..over.gateways()).map(|_| services.each_ref().map(listen)).collect();
        let url = |gateway: usize| match &store {
            Some(store) => store.url(gateway).to_owned(),
            None => format!("file:{}", folder.path().join("data").display()),
        };
        let gateways: Vec<Gateway> =
            ways.iter().enumerate().map(|(n, ways)| launch(over, &url(n), ways)).collect();
        gateways.iter().for_each(|gateway| until("a gateway to be ready", || gateway.is_ready()));
        Fleet {
            over,
            services,
            ways,
            ports: gateways.iter().map(|gateway| (gateway.port, gateway.admin)).collect(),
            gateways: gateways.into_iter().map(Mutex::new).collect(),
            store,
            troubles: Mutex::default(),
            _folder: folder,
            runtime: Some(runtime),
        }
    }

    /// Sends a request to a gateway's admin port, with the version of what it changes. `None` if
    /// the gateway does not answer.
    pub fn admin(
        &self,
        gateway: usize,
        target: &str,
        change: Option<(&str, &str)>,
    ) -> Option<Answer> {
        let method = if change.is_some() { "POST" } else { "GET" };
        let mut request = Request::new(method, target).host("127.0.0.1");
        if let Some((version, body)) = change {
            request = request.field("If-Match", &format!("\"{version}\"")).json(body);
        }
        exchange(self.ports[gateway].1, &request, method, Duration::from_secs(3))
    }

    /// Returns the last lines of the gateways' logs.
    pub fn log_tails(&self, lines: usize) -> String {
        let tail = |(n, gateway): (usize, &Mutex<Gateway>)| {
            let log = gateway.lock().unwrap().logs();
            let all: Vec<&str> = log.lines().collect();
            let tail = all[all.len().saturating_sub(lines)..].join("\n");
            format!("--- the end of the log of gateway {n}\n{tail}\n")
        };
        self.gateways.iter().enumerate().map(tail).collect()
    }

    /// Returns how often the faults happened, by their names. Each must happen.
    pub fn tally(&self) -> BTreeMap<String, usize> {
        let all = [
            Fault::Kill,
            Fault::Stop,
            Fault::Crash,
            Fault::CutWay,
            Fault::PartWay,
            Fault::Sleep,
            Fault::FreezeStore,
            Fault::KillStore,
            Fault::CutStore,
        ];
        let all = if self.store.is_some() { &all[..] } else { &all[..5] };
        let troubles = self.troubles.lock().unwrap();
        let times = |fault: &Fault| troubles.iter().filter(|(other, ..)| other == fault).count();
        all.iter().map(|fault| (format!("{fault:?}"), times(fault))).collect()
    }

    /// Returns the number of sagas that another gateway took over, or the same one after its start.
    pub fn takeovers(&self) -> usize {
        let of = |gateway: &Mutex<Gateway>| {
            gateway.lock().unwrap().logs().matches("saga taken over").count()
        };
        self.gateways.iter().map(of).sum()
    }

    /// Lets processes fail until `end`, one at a time.
    pub fn lose_processes(&self, mut dice: Dice, end: Duration) {
        let mut first = match self.over {
            Over::File => vec![Fault::Kill, Fault::Stop, Fault::Kill],
            Over::Redis => {
                vec![Fault::Sleep, Fault::Kill, Fault::FreezeStore, Fault::KillStore, Fault::Stop]
            }
        };
        while now() < end {
            pause(dice.within(300..2500));
            let fault = match (first.is_empty(), self.over) {
                (false, _) => first.swap_remove(dice.within(0..first.len() as u64) as usize),
                (true, Over::File) => *dice.pick(&[Fault::Kill, Fault::Kill, Fault::Stop]),
                (true, Over::Redis) => *dice.pick(&[Fault::Kill, Fault::Stop, Fault::FreezeStore]),
            };
            self.suffer(fault, &mut dice);
        }
    }

    /// Lets connections and services fail until `end`, one at a time.
    pub fn lose_connections(&self, mut dice: Dice, end: Duration) {
        let all = [Fault::Crash, Fault::CutWay, Fault::PartWay, Fault::CutStore];
        let all = if self.store.is_some() { &all[..] } else { &all[..3] };
        // Each kind once, and then any.
        let mut first = all.to_vec();
        while now() < end {
            pause(dice.within(300..2000));
            let fault = first.pop().unwrap_or_else(|| *dice.pick(all));
            self.suffer(fault, &mut dice);
        }
    }

    fn suffer(&self, fault: Fault, dice: &mut Dice) {
        let from = now();
        let gateway = dice.within(0..self.over.gateways() as u64) as usize;
        let service = dice.within(0..SERVICES.len() as u64) as usize;
        let way = &self.ways[gateway][service];
        match fault {
            Fault::Kill => {
                let mut process = self.gateways[gateway].lock().unwrap();
                process.kill();
                pause(dice.within(20..900));
                process.start_again();
            }
            Fault::Stop => self.stop(gateway, dice.within(300..3500)),
            Fault::Sleep => self.stop(gateway, SAGA_LEASE_MS + dice.within(300..2500)),
            Fault::FreezeStore => {
                let store = self.store.as_ref().unwrap();
                store.hang(|| pause(dice.within(200..3000)));
            }
            Fault::KillStore => {
                self.store.as_ref().unwrap().fail_over(Manner::Dies, dice);
            }
            Fault::CutStore => {
                let ways = self.store.as_ref().unwrap().ways(gateway);
                cut(&ways.iter().collect::<Vec<_>>(), dice);
            }
            Fault::Crash => {
                self.services[service].crash();
                let ways = self.ways.iter().map(|ways| &ways[service]);
                let ways: Vec<&FaultProxy> = ways.collect();
                ways.iter().for_each(|way| way.turn(Mode::Refused));
                self.services[service].crash();
                pause(dice.within(100..1500));
                ways.iter().for_each(|way| way.turn(Mode::Open));
            }
            Fault::CutWay => cut(&[way], dice),
            // The bytes are lost and not late: a request that arrives after the gateway believed an
            // "absent" is beyond the promises.
            Fault::PartWay => {
                way.turn(Mode::Lost);
                pause(dice.within(200..2000));
                way.turn(Mode::Open);
            }
        }
        self.troubles.lock().unwrap().push((fault, from, now()));
    }

    fn stop(&self, gateway: usize, ms: u64) {
        let process = self.gateways[gateway].lock().unwrap();
        process.signal("STOP");
        pause(ms);
        process.signal("CONT");
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Sends a request. `None` without a whole answer.
pub fn exchange(port: u16, request: &Request, method: &str, patience: Duration) -> Option<Answer> {
    let mut connection = Connection::try_open(port, patience)?;
    connection.try_write(&request.bytes()).then(|| connection.try_read(method))?
}

/// Cuts connections at their next bytes.
pub fn cut(ways: &[&FaultProxy], dice: &mut Dice) {
    for way in ways {
        let direction = *dice.pick(&[Way::There, Way::Back]);
        way.arm(Cut { way: direction, keep: dice.next() as usize, reset: dice.percent(50) });
    }
    for _ in 0..300 {
        if ways.iter().all(|way| !way.is_armed()) {
            break;
        }
        pause(5);
    }
    ways.iter().for_each(|way| way.disarm());
}

fn launch(over: Over, store: &str, ways: &[FaultProxy; 3]) -> Gateway {
    let url = |at: usize| format!("http://127.0.0.1:{}", ways[at].port);
    let upstreams: String = (1..SERVICES.len())
        .map(|at| format!("[upstreams.{}]\nurl = \"{}\"\n", SERVICES[at], url(at)))
        .collect();
    let ack = match over {
        Over::File => "",
        Over::Redis => "ack = \"fsync\"\n",
    };
    let settings = format!(
        "[upstream]\nresponse_timeout = \"2s\"\n{upstreams}[store]\nformat = 3\n{ack}\
         [encryption]\nkeys = [{{ id = \"a\", env = \"SEAL\" }}]\n"
    );
    // At this level takeovers are logged, which a run counts.
    let log = std::env::var("ONCEWARD_CHAOS_LOG");
    let log = log.unwrap_or("onceward=warn,onceward::saga=info".into());
    Gateway::launch(&url(0), store, &settings, &sagas(), |command| {
        command.env("SEAL", "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE=");
        command.env("ONCEWARD_LOG", log);
    })
}

//! Gateways over one store in front of one upstream, and what happens to them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;
use std::time::Duration;

use tempfile::TempDir;
use tokio::runtime::Runtime;

use super::kinds::routes;
use crate::dice::Dice;
use crate::faultproxy::{FaultProxy, Mode};
use crate::harness::documents::{Documents, UnderWay};
use crate::harness::{Gateway, until};
use crate::sagas::fleet::cut;
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

/// A kind of fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// A gateway is killed while it looks, and started again.
    KillLooking,
    /// A gateway is killed after it has sent a write, and started again.
    KillSent,
    /// A gateway is stopped for a moment, or for longer than its lease.
    Stop,
    /// Connections between a gateway and the upstream are cut.
    CutWay,
    /// Bytes between a gateway and the upstream are lost.
    PartWay,
    /// The upstream refuses connections.
    RefuseWay,
    /// Redis is stopped for a moment.
    FreezeStore,
    /// Redis is killed, and starts again with its data.
    KillStore,
    /// Connections to Redis are cut.
    CutStore,
}

const PROCESSES: [Fault; 5] =
    [Fault::Stop, Fault::KillSent, Fault::KillLooking, Fault::FreezeStore, Fault::KillStore];
const CONNECTIONS: [Fault; 4] = [Fault::CutWay, Fault::PartWay, Fault::RefuseWay, Fault::CutStore];

impl Fault {
    fn is_of_redis(self) -> bool {
        matches!(self, Fault::FreezeStore | Fault::KillStore | Fault::CutStore)
    }
}

/// Gateways with everything around them.
pub struct Fleet {
    pub upstream: Documents,
    /// The ways from each gateway to the upstream.
    ways: Vec<FaultProxy>,
    gateways: Vec<Mutex<Gateway>>,
    /// The ports of the gateways.
    pub ports: Vec<u16>,
    store: Option<Store>,
    /// The times in which something failed.
    pub troubles: Mutex<Vec<(Fault, Duration, Duration)>>,
    _folder: TempDir,
    runtime: Option<Runtime>,
}

impl Fleet {
    pub fn start(over: Over) -> Fleet {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (upstream, folder) = (Documents::start(), tempfile::tempdir().unwrap());
        let store = (over == Over::Redis).then(|| Store::start(Kind::Standalone, runtime.handle()));
        let count = if over == Over::Redis { crate::GATEWAYS } else { 1 };
        let listen = |_| FaultProxy::listen(runtime.handle(), upstream.port);
        let ways: Vec<FaultProxy> = (0..count).map(listen).collect();
        let url = |gateway: usize| match &store {
            Some(store) => store.url(gateway).to_owned(),
            None => format!("file:{}", folder.path().join("data").display()),
        };
        let gateways: Vec<Gateway> =
            ways.iter().enumerate().map(|(n, way)| launch(over, &url(n), way.port)).collect();
        gateways.iter().for_each(|gateway| until("a gateway to be ready", || gateway.is_ready()));
        Fleet {
            upstream,
            ways,
            ports: gateways.iter().map(|gateway| gateway.port).collect(),
            gateways: gateways.into_iter().map(Mutex::new).collect(),
            store,
            troubles: Mutex::default(),
            _folder: folder,
            runtime: Some(runtime),
        }
    }

    /// Returns the tags that the event log names as overwritten.
    pub fn overwritten(&self) -> HashSet<String> {
        let gateway = self.gateways[0].lock().unwrap();
        let mut tags = HashSet::new();
        let mut from = "since=1970-01-01T00:00:00Z".to_owned();
        loop {
            let page = gateway.ask("GET", &format!("/v1/log?limit=1000&{from}")).json();
            let events = page["events"].as_array().unwrap();
            if events.is_empty() {
                return tags;
            }
            let named = events.iter().filter_map(|event| event["overwrote"].as_str());
            tags.extend(named.map(str::to_owned));
            from = format!("after={}", page["cursor"].as_str().unwrap());
        }
    }

    /// Returns the lines of the gateways' logs that name overwritten versions.
    pub fn overwrites_in_logs(&self) -> String {
        let of = |gateway: &Mutex<Gateway>| {
            let log = gateway.lock().unwrap().logs();
            let lines = log.lines().filter(|line| line.contains("write overwrites a version"));
            lines.collect::<Vec<_>>().join("\n")
        };
        self.gateways.iter().map(of).collect()
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

    /// Returns how often a text is in the gateways' logs.
    pub fn logged(&self, text: &str) -> usize {
        let of = |gateway: &Mutex<Gateway>| gateway.lock().unwrap().logs().matches(text).count();
        self.gateways.iter().map(of).sum()
    }

    /// Returns how often the faults happened, by their names. Each must happen.
    pub fn tally(&self) -> BTreeMap<String, usize> {
        let troubles = self.troubles.lock().unwrap();
        let times = |fault: &Fault| troubles.iter().filter(|(other, ..)| other == fault).count();
        let all = PROCESSES.iter().chain(&CONNECTIONS).filter(|fault| self.has(**fault));
        all.map(|fault| (format!("{fault:?}"), times(fault))).collect()
    }

    fn has(&self, fault: Fault) -> bool {
        self.store.is_some() || !fault.is_of_redis()
    }

    /// Lets processes fail until `end`, one at a time.
    pub fn lose_processes(&self, dice: Dice, end: Duration) {
        self.lose(&PROCESSES, dice, end);
    }

    /// Lets connections fail until `end`, one at a time.
    pub fn lose_connections(&self, dice: Dice, end: Duration) {
        self.lose(&CONNECTIONS, dice, end);
    }

    /// Lets each kind of fault happen once, and then any.
    fn lose(&self, all: &[Fault], mut dice: Dice, end: Duration) {
        let all: Vec<Fault> = all.iter().copied().filter(|fault| self.has(*fault)).collect();
        let mut first = all.clone();
        while now() < end {
            pause(dice.within(600..2600));
            let fault = first.pop().unwrap_or_else(|| *dice.pick(&all));
            self.suffer(fault, &mut dice);
        }
    }

    fn suffer(&self, fault: Fault, dice: &mut Dice) {
        let mut from = now();
        let gateway = dice.within(0..self.gateways.len() as u64) as usize;
        let way = &self.ways[gateway];
        match fault {
            Fault::KillLooking | Fault::KillSent => {
                let is_it = |UnderWay { looks, writes }| match fault {
                    Fault::KillLooking => looks > 0,
                    _ => writes > 0,
                };
                let mut process = self.gateways[gateway].lock().unwrap();
                until("a writer to be under way", || is_it(self.upstream.under_way()));
                from = now();
                process.kill();
                pause(dice.within(20..900));
                process.start_again();
            }
            Fault::Stop => {
                let process = self.gateways[gateway].lock().unwrap();
                process.signal("STOP");
                pause(dice.within(300..3200));
                process.signal("CONT");
            }
            Fault::FreezeStore => {
                let store = self.store.as_ref().unwrap();
                store.hang(|| pause(dice.within(200..2500)));
            }
            Fault::KillStore => {
                self.store.as_ref().unwrap().fail_over(Manner::Dies, dice);
            }
            Fault::CutStore => {
                let ways = self.store.as_ref().unwrap().ways(gateway);
                cut(&ways.iter().collect::<Vec<_>>(), dice);
            }
            Fault::CutWay => cut(&[way], dice),
            // The bytes are lost and not late: a write that is executed after `uncertain_after` is
            // beyond the promises.
            Fault::PartWay => {
                way.turn(Mode::Lost);
                pause(dice.within(200..1500));
                way.turn(Mode::Open);
            }
            Fault::RefuseWay => {
                way.turn(Mode::Refused);
                pause(dice.within(200..1000));
                way.turn(Mode::Open);
            }
        }
        self.troubles.lock().unwrap().push((fault, from, now()));
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn launch(over: Over, store: &str, upstream: u16) -> Gateway {
    let ack = match over {
        Over::File => "",
        Over::Redis => "[store]\nack = \"fsync\"\n",
    };
    let settings = format!("[upstream]\nresponse_timeout = \"4s\"\n{ack}[log]\nenabled = true\n");
    // At these levels the log has writes that were released unsent and overwritten versions.
    let log = std::env::var("ONCEWARD_CHAOS_LOG");
    let log = log.unwrap_or(
        "onceward=warn,onceward::gate::claim::records=info,onceward::gate::attempt::write=info"
            .into(),
    );
    let url = format!("http://127.0.0.1:{upstream}");
    Gateway::launch(&url, store, &settings, &routes(), |command| {
        command.env("ONCEWARD_LOG", log);
    })
}

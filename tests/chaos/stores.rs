//! The three stores that gateways share, each reached through fault proxies, one per gateway and server.

use std::sync::Mutex;

use tokio::runtime::Handle;

use crate::dice::Dice;
use crate::faultproxy::FaultProxy;
use crate::harness::{Cluster, RedisServer, Watched, free_port, until};
use crate::{GATEWAYS, pause};

/// Which store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One server, whose log is synced with every write.
    Standalone,
    /// A primary with two replicas, watched by three sentinels.
    Sentinels,
    /// Three primaries, each with a replica.
    Cluster,
}

enum Servers {
    Standalone(Mutex<RedisServer>),
    Sentinels(Mutex<Watched>),
    Cluster(Mutex<Cluster>),
}

/// A store, and the ways to it.
pub struct Store {
    servers: Servers,
    /// The ports of the Redis servers.
    ports: Vec<u16>,
    urls: Vec<String>,
    ways: [Vec<FaultProxy>; GATEWAYS],
}

/// What a failover came to.
pub struct FailOver {
    /// Whether another server serves now, or another run of the only one.
    pub changed: bool,
    /// Bytes of the old primary's history that the new one never got.
    pub forgotten: u64,
}

const ON_DISK: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

impl Kind {
    /// What the promises need there. Where any replica may be promoted, all have to confirm.
    pub fn ack(self) -> &'static str {
        match self {
            Kind::Standalone => "fsync",
            Kind::Sentinels => "replicas:2",
            Kind::Cluster => "replicas:1",
        }
    }
}

impl Store {
    pub fn start(kind: Kind, runtime: &Handle) -> Store {
        let (servers, url, ports) = match kind {
            Kind::Standalone => {
                let server = RedisServer::with(free_port(), &ON_DISK);
                let (url, ports) = (server.url(), vec![server.port]);
                (Servers::Standalone(Mutex::new(server)), url, ports)
            }
            Kind::Sentinels => {
                let watched = Watched::start();
                let (url, ports) = (watched.url(), watched.servers.iter().map(|server| server.port).collect());
                (Servers::Sentinels(Mutex::new(watched)), url, ports)
            }
            Kind::Cluster => {
                let cluster = Cluster::start();
                let (url, ports) = (cluster.url(), cluster.servers.iter().map(|server| server.port).collect());
                (Servers::Cluster(Mutex::new(cluster)), url, ports)
            }
        };
        // Whom gateways connect to: the servers, and where there are some, the sentinels of the URL.
        let mut targets: Vec<u16> = ports.clone();
        targets.extend(
            url.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse().ok()).filter(|port: &u16| *port > 9999),
        );
        targets.sort();
        targets.dedup();
        let ways: [Vec<FaultProxy>; GATEWAYS] =
            std::array::from_fn(|_| targets.iter().map(|target| FaultProxy::listen(runtime, *target)).collect());
        let urls = ways.iter().map(|ways| {
            let renamed: Vec<(u16, u16)> = targets.iter().copied().zip(ways.iter().map(|way| way.port)).collect();
            ways.iter().for_each(|way| way.rename(&renamed));
            renamed.iter().fold(url.clone(), |url, (from, to)| url.replace(&from.to_string(), &to.to_string()))
        });
        let urls = urls.collect();
        Store { servers, ports, urls, ways }
    }

    /// Where a gateway finds it.
    pub fn url(&self, gateway: usize) -> &str {
        &self.urls[gateway]
    }

    /// The proxies that a gateway's bytes to it pass.
    pub fn ways(&self, gateway: usize) -> &[FaultProxy] {
        &self.ways[gateway]
    }

    pub fn has_replicas(&self) -> bool {
        !matches!(self.servers, Servers::Standalone(_))
    }

    /// Makes the servers forget the scripts.
    pub fn flush_scripts(&self) {
        self.ports.iter().for_each(|port| _ = cli(*port, &["script", "flush"]));
    }

    /// How often a server was asked for a script that it had forgotten, since it started.
    pub fn forgotten_scripts(&self) -> u64 {
        let of = |port: &u16| {
            let errors = cli(*port, &["info", "errorstats"]);
            let count = errors.lines().find_map(|line| line.trim().strip_prefix("errorstat_NOSCRIPT:count=")?.parse().ok());
            count.unwrap_or(0)
        };
        self.ports.iter().map(of).sum()
    }

    /// Cuts a primary's replicas off, kills it a little later, waits until one of them has taken its place, and brings it
    /// back as that one's replica. The only server of its store comes back as itself, with what it had synced.
    pub fn fail_over(&self, dice: &mut Dice) -> FailOver {
        match &self.servers {
            Servers::Standalone(server) => {
                let mut server = server.lock().unwrap();
                let run = |server: &RedisServer| {
                    let info = server.cli(&["info", "server"]);
                    info.lines().find_map(|line| line.trim().strip_prefix("run_id:")).unwrap_or_default().to_owned()
                };
                let before = run(&server);
                server.kill();
                pause(300);
                server.restart(&ON_DISK);
                FailOver { changed: run(&server) != before, forgotten: 0 }
            }
            Servers::Sentinels(watched) => {
                let mut watched = watched.lock().unwrap();
                let before = watched.primary();
                let at = watched.servers.iter().position(|server| server.port == before).unwrap();
                let written = watched.servers[at].forsake(dice);
                until("the sentinels to name another", || watched.primary() != before);
                let after = watched.primary();
                let next = watched.servers.iter().position(|server| server.port == after).unwrap();
                until("it to be the primary", || watched.servers[next].is_primary());
                let forgotten = written.saturating_sub(offset(after));
                watched.servers[at].restart(&["--replicaof", "127.0.0.1", &after.to_string()]);
                until("two replicas to follow", || watched.servers[next].is_copied_to(2));
                FailOver { changed: before != after, forgotten }
            }
            Servers::Cluster(cluster) => {
                let mut cluster = cluster.lock().unwrap();
                let primaries = |cluster: &Cluster| -> Vec<u16> {
                    let mut ports: Vec<u16> = cluster.primaries().iter().map(|server| server.port).collect();
                    ports.sort();
                    ports
                };
                let before = primaries(&cluster);
                let victim = before[dice.within(0..before.len() as u64) as usize];
                let at = cluster.servers.iter().position(|server| server.port == victim).unwrap();
                let written = cluster.servers[at].forsake(dice);
                until("its replica to take its place", || primaries(&cluster).len() == 3);
                let after = primaries(&cluster);
                let heir = after.iter().find(|port| !before.contains(port)).copied();
                let forgotten = written.saturating_sub(heir.map_or(written, offset));
                cluster.servers[at].restart(&Cluster::SETTINGS);
                until("the old one to follow the new one", || {
                    !cluster.servers[at].is_primary() && primaries(&cluster).len() == 3 && cluster.is_copied()
                });
                FailOver { changed: heir.is_some(), forgotten }
            }
        }
    }
}

impl RedisServer {
    /// Cuts its replicas off, goes on for a while by itself, and dies. Returns how far its history went.
    fn forsake(&mut self, dice: &mut Dice) -> u64 {
        // Its replicas come in as everybody else, and only they say these.
        assert_eq!(self.cli(&["acl", "setuser", "default", "-psync", "-sync"]), "OK");
        self.cli(&["client", "kill", "type", "replica"]);
        pause(dice.within(200..900));
        let written = offset(self.port);
        self.kill();
        written
    }
}

/// How far a server's history goes.
fn offset(port: u16) -> u64 {
    let info = cli(port, &["info", "replication"]);
    info.lines().find_map(|line| line.trim().strip_prefix("master_repl_offset:")?.parse().ok()).unwrap_or(0)
}

fn cli(port: u16, words: &[&str]) -> String {
    let out = std::process::Command::new("redis-cli").args(["-p", &port.to_string()]).args(words).output().unwrap();
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

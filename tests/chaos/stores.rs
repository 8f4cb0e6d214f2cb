//! The stores that gateways share, each behind fault proxies, one per gateway and server.

use std::sync::Mutex;

use tokio::runtime::Handle;

use crate::dice::Dice;
use crate::faultproxy::FaultProxy;
use crate::harness::{Cluster, RedisServer, Watched, free_port, until};
use crate::{GATEWAYS, pause};

/// The kind of store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One server; its append-only file is synced with every write.
    Standalone,
    /// A primary with two replicas, watched by three sentinels.
    Sentinels,
    /// Three primaries, each with a replica.
    Cluster,
    /// One server like the first, but its files are lost with it. Gateways use `durability =
    /// "strict"`.
    Emptied,
}

enum Servers {
    Standalone(Mutex<RedisServer>),
    Sentinels(Mutex<Watched>),
    Cluster(Mutex<Cluster>),
}

/// A store and the proxies in front of it.
pub struct Store {
    servers: Servers,
    /// The ports of the Redis servers.
    ports: Vec<u16>,
    urls: Vec<String>,
    ways: [Vec<FaultProxy>; GATEWAYS],
}

/// The way in which a primary loses its role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Its replicas are cut off, it continues alone for a while, and is killed.
    Dies,
    /// It is stopped, and resumes when another server has its role.
    Freezes,
    /// By the failover command.
    GivesWay,
}

impl Manner {
    pub const ALL: [Manner; 3] = [Manner::Dies, Manner::Freezes, Manner::GivesWay];
}

/// The result of a failover.
pub struct FailOver {
    /// Whether another server serves now, or another run of the only server.
    pub changed: bool,
    /// Bytes of the old primary's history that no replica had when it died.
    pub forgotten: u64,
}

const ON_DISK: [&str; 4] = ["--appendonly", "yes", "--appendfsync", "always"];

impl Kind {
    /// The settings that the promises need on this store. Where any replica may be promoted, all
    /// must confirm.
    pub fn ack(self) -> &'static str {
        match self {
            Kind::Standalone | Kind::Emptied => "fsync",
            Kind::Sentinels => "replicas:2",
            Kind::Cluster => "replicas:1",
        }
    }
}

impl Store {
    pub fn start(kind: Kind, runtime: &Handle) -> Store {
        let (servers, url, ports) = match kind {
            Kind::Standalone | Kind::Emptied => {
                let server = RedisServer::with(free_port(), &ON_DISK);
                let (url, ports) = (server.url(), vec![server.port]);
                (Servers::Standalone(Mutex::new(server)), url, ports)
            }
            Kind::Sentinels => {
                let watched = Watched::start();
                let (url, ports) =
                    (watched.url(), watched.servers.iter().map(|server| server.port).collect());
                (Servers::Sentinels(Mutex::new(watched)), url, ports)
            }
            Kind::Cluster => {
                let cluster = Cluster::start();
                let (url, ports) =
                    (cluster.url(), cluster.servers.iter().map(|server| server.port).collect());
                (Servers::Cluster(Mutex::new(cluster)), url, ports)
            }
        };
        // The addresses for gateways: the servers and, where they exist, the sentinels of the URL.
        let mut targets: Vec<u16> = ports.clone();
        targets.extend(
            url.split(|c: char| !c.is_ascii_digit())
                .filter_map(|number| number.parse().ok())
                .filter(|port: &u16| *port > 9999),
        );
        targets.sort();
        targets.dedup();
        let ways: [Vec<FaultProxy>; GATEWAYS] = std::array::from_fn(|_| {
            targets.iter().map(|target| FaultProxy::listen(runtime, *target)).collect()
        });
        let urls = ways.iter().map(|ways| {
            let renamed: Vec<(u16, u16)> =
                targets.iter().copied().zip(ways.iter().map(|way| way.port)).collect();
            ways.iter().for_each(|way| way.rename(&renamed));
            renamed.iter().fold(url.clone(), |url, (from, to)| {
                url.replace(&from.to_string(), &to.to_string())
            })
        });
        let urls = urls.collect();
        Store { servers, ports, urls, ways }
    }

    /// The URL of the store for a gateway.
    pub fn url(&self, gateway: usize) -> &str {
        &self.urls[gateway]
    }

    /// The proxies between a gateway and the store.
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

    /// Returns how often a server was asked for a forgotten script since its start.
    pub fn forgotten_scripts(&self) -> u64 {
        let of = |port: &u16| {
            let errors = cli(*port, &["info", "errorstats"]);
            let count = errors.lines().find_map(|line| {
                line.trim().strip_prefix("errorstat_NOSCRIPT:count=")?.parse().ok()
            });
            count.unwrap_or(0)
        };
        self.ports.iter().map(of).sum()
    }

    /// Hangs the only server until `meanwhile` returns, then kills it and restarts it empty.
    /// Returns whether another run of it serves now.
    pub fn hang_and_empty(&self, meanwhile: impl FnOnce()) -> bool {
        let Servers::Standalone(server) = &self.servers else {
            panic!("there are several servers")
        };
        let mut server = server.lock().unwrap();
        let before = run_of(&server);
        server.signal("STOP");
        meanwhile();
        server.kill();
        server.restart_empty(&ON_DISK);
        run_of(&server) != before
    }

    /// Hangs the only server until `meanwhile` returns.
    pub fn hang(&self, meanwhile: impl FnOnce()) {
        let Servers::Standalone(server) = &self.servers else {
            panic!("there are several servers")
        };
        let server = server.lock().unwrap();
        server.signal("STOP");
        meanwhile();
        server.signal("CONT");
    }

    /// Makes another server the primary. A single server is killed and restarts with its synced
    /// data. When this returns, every server has a role again.
    pub fn fail_over(&self, manner: Manner, dice: &mut Dice) -> FailOver {
        match &self.servers {
            Servers::Standalone(server) => {
                let mut server = server.lock().unwrap();
                let before = run_of(&server);
                server.kill();
                pause(300);
                server.restart(&ON_DISK);
                FailOver { changed: run_of(&server) != before, forgotten: 0 }
            }
            Servers::Sentinels(watched) => {
                fail_over_watched(&mut watched.lock().unwrap(), manner, dice)
            }
            Servers::Cluster(cluster) => {
                fail_over_cluster(&mut cluster.lock().unwrap(), manner, dice)
            }
        }
    }
}

fn fail_over_watched(watched: &mut Watched, manner: Manner, dice: &mut Dice) -> FailOver {
    let before = watched.primary();
    let old = watched.servers.iter().position(|server| server.port == before).unwrap();
    let others: Vec<u16> =
        watched.servers.iter().map(|server| server.port).filter(|port| *port != before).collect();
    let mut forgotten = 0;
    match manner {
        Manner::Dies => forgotten = watched.servers[old].die_alone(&others, dice),
        Manner::Freezes => watched.servers[old].signal("STOP"),
        Manner::GivesWay => watched.fail_over(),
    }
    until("the sentinels to name another", || watched.primary() != before);
    let after = watched.primary();
    let heir = watched.servers.iter().position(|server| server.port == after).unwrap();
    until("it to be the primary", || watched.servers[heir].is_primary());
    match manner {
        Manner::Dies => {
            watched.servers[old].restart(&["--replicaof", "127.0.0.1", &after.to_string()])
        }
        Manner::Freezes => watched.servers[old].signal("CONT"),
        Manner::GivesWay => {}
    }
    // Connected clients still use an old primary until the sentinels demote it, which happens late.
    pause(dice.within(100..1500));
    let mut sought = None;
    until("two replicas to follow", || {
        let primary = watched.primary().to_string();
        let address = ["127.0.0.1", &primary];
        let lead =
            watched.servers.iter().find(|server| server.port.to_string() == primary).unwrap();
        let strays = watched.servers.iter().filter(|server| server.port != lead.port);
        let strays =
            strays.filter(|server| server.cli(&["role"]).lines().skip(1).take(2).ne(address));
        strays.for_each(|server| _ = server.cli(&["replicaof", address[0], address[1]]));
        if !lead.is_primary() {
            return false;
        }
        sought = sought
            .filter(|(port, _)| *port == lead.port)
            .or_else(|| Some((lead.port, lead.position())));
        sought.is_some_and(|(_, position)| lead.is_copied_up_to(position, 2))
    });
    FailOver { changed: before != after, forgotten }
}

fn fail_over_cluster(cluster: &mut Cluster, manner: Manner, dice: &mut Dice) -> FailOver {
    let primaries: Vec<u16> = cluster.primaries().iter().map(|server| server.port).collect();
    let before = primaries[dice.within(0..primaries.len() as u64) as usize];
    let follows =
        |server: &RedisServer| server.cli(&["role"]).lines().nth(2) == Some(&before.to_string());
    let old = cluster.servers.iter().position(|server| server.port == before).unwrap();
    let heir =
        cluster.servers.iter().position(|server| !server.is_primary() && follows(server)).unwrap();
    let mut forgotten = 0;
    match manner {
        Manner::Dies => {
            let replica = cluster.servers[heir].port;
            forgotten = cluster.servers[old].die_alone(&[replica], dice);
        }
        Manner::Freezes => cluster.servers[old].signal("STOP"),
        Manner::GivesWay => {
            until("the failover to begin", || {
                cluster.servers[heir].cli(&["cluster", "failover"]) == "OK"
            });
        }
    }
    until("its replica to take its place", || cluster.servers[heir].is_primary());
    match manner {
        Manner::Dies => cluster.servers[old].restart(&Cluster::SETTINGS),
        Manner::Freezes => cluster.servers[old].signal("CONT"),
        Manner::GivesWay => {}
    }
    until("the old one to follow the new one", || {
        !cluster.servers[old].is_primary() && cluster.is_copied()
    });
    FailOver { changed: cluster.servers[heir].is_primary(), forgotten }
}

/// Identifies one run of a server.
fn run_of(server: &RedisServer) -> String {
    let info = server.cli(&["info", "server"]);
    info.lines().find_map(|line| line.trim().strip_prefix("run_id:")).unwrap_or_default().to_owned()
}

impl RedisServer {
    /// Cuts its replicas off, lets it continue for a while, and kills it. Returns how many bytes of
    /// its history no replica has.
    fn die_alone(&mut self, replicas: &[u16], dice: &mut Dice) -> u64 {
        // Replicas connect like all clients, and only they send these commands.
        assert_eq!(self.cli(&["acl", "setuser", "default", "-psync", "-sync"]), "OK");
        self.cli(&["client", "kill", "type", "replica"]);
        pause(dice.within(500..2000));
        let written = offset(self.port);
        let kept = replicas.iter().map(|port| offset(*port)).max().unwrap_or(0);
        self.kill();
        written.saturating_sub(kept)
    }
}

/// Returns the end of a server's history.
fn offset(port: u16) -> u64 {
    let info = cli(port, &["info", "replication"]);
    info.lines()
        .find_map(|line| line.trim().strip_prefix("master_repl_offset:")?.parse().ok())
        .unwrap_or(0)
}

fn cli(port: u16, words: &[&str]) -> String {
    let out = std::process::Command::new("redis-cli")
        .args(["-p", &port.to_string()])
        .args(words)
        .output()
        .unwrap();
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

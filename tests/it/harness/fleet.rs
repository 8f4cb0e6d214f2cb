//! Redis deployments of several servers: a cluster, and a primary with replicas and sentinels.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use super::{RedisServer, free_port, until};

/// A cluster of three primaries, each with a replica.
pub struct Cluster {
    pub servers: Vec<RedisServer>,
}

impl Cluster {
    /// Arguments with which every node is started.
    pub const SETTINGS: [&str; 6] = [
        "--cluster-enabled",
        "yes",
        "--cluster-node-timeout",
        "1000",
        "--cluster-replica-validity-factor",
        "0",
    ];

    pub fn start() -> Cluster {
        let servers: Vec<RedisServer> =
            (0..6).map(|_| RedisServer::with(port_with_bus(), &Cluster::SETTINGS)).collect();
        let mut create = Command::new("redis-cli");
        create
            .args(["--cluster", "create"])
            .args(servers.iter().map(|server| format!("127.0.0.1:{}", server.port)));
        let made = create.args(["--cluster-replicas", "1", "--cluster-yes"]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stdout));
        let cluster = Cluster { servers };
        until("the cluster to stand", || {
            let agreed = |server: &RedisServer| {
                server.cli(&["cluster", "info"]).contains("cluster_state:ok")
            };
            cluster.servers.iter().all(agreed)
                && cluster.primaries().len() == 3
                && cluster.is_copied()
        });
        cluster
    }

    /// A URL that names one node; the gateway discovers the others.
    pub fn url(&self) -> String {
        format!("redis+cluster://127.0.0.1:{}", self.servers[0].port)
    }

    pub fn primaries(&self) -> Vec<&RedisServer> {
        self.servers.iter().filter(|server| server.is_primary()).collect()
    }

    /// Whether every primary's replica has all of its writes.
    pub fn is_copied(&self) -> bool {
        self.primaries().iter().all(|primary| primary.is_copied_to(1))
    }
}

/// Returns a free port; its cluster bus port, 10000 higher, is free too.
fn port_with_bus() -> u16 {
    loop {
        let port = free_port();
        if let Some(bus) = port.checked_add(10_000)
            && TcpListener::bind(("127.0.0.1", bus)).is_ok()
        {
            return port;
        }
    }
}

/// A primary with two replicas, watched by three sentinels.
pub struct Watched {
    pub servers: Vec<RedisServer>,
    sentinels: Vec<Sentinel>,
}

struct Sentinel {
    port: u16,
    child: Child,
    _dir: tempfile::TempDir,
}

impl Watched {
    pub const NAME: &str = "payments";

    pub fn start() -> Watched {
        let primary = RedisServer::start();
        let follow = primary.port.to_string();
        let mut servers = vec![primary];
        for _ in 0..2 {
            servers.push(RedisServer::with(free_port(), &["--replicaof", "127.0.0.1", &follow]));
        }
        until("the replicas to follow", || servers[0].is_copied_to(2));
        let watched = Watched {
            sentinels: (0..3).map(|_| Sentinel::start(servers[0].port)).collect(),
            servers,
        };
        until("the sentinels to know each other", || {
            watched.sentinels.iter().all(|sentinel| {
                let known = sentinel.cli(&["sentinel", "master", Watched::NAME]);
                let field = |name: &str| {
                    known.lines().skip_while(|line| *line != name).nth(1).map(str::to_owned)
                };
                field("num-other-sentinels").as_deref() == Some("2")
                    && field("num-slaves").as_deref() == Some("2")
            })
        });
        watched
    }

    pub fn url(&self) -> String {
        let hosts: Vec<String> =
            self.sentinels.iter().map(|sentinel| format!("127.0.0.1:{}", sentinel.port)).collect();
        format!("redis+sentinel://{}/{}", hosts.join(","), Watched::NAME)
    }

    /// Returns the primary's port according to the sentinels.
    pub fn primary(&self) -> u16 {
        let answer = self.sentinels[0].cli(&["sentinel", "get-master-addr-by-name", Watched::NAME]);
        answer.lines().nth(1).unwrap().parse().unwrap()
    }

    /// Makes the sentinels promote another server, and waits until they have.
    pub fn fail_over(&self) {
        let before = self.primary();
        until("the failover to begin", || {
            self.sentinels[0].cli(&["sentinel", "failover", Watched::NAME]) == "OK"
        });
        until("the failover to end", || self.primary() != before);
    }
}

impl Sentinel {
    fn start(primary: u16) -> Sentinel {
        let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
        let name = Watched::NAME;
        let settings = format!(
            "port {port}\nbind 127.0.0.1\nsentinel monitor {name} 127.0.0.1 {primary} 2\n\
             sentinel down-after-milliseconds {name} 1000\nsentinel failover-timeout {name} 3000\n"
        );
        let file = dir.path().join("sentinel.conf");
        std::fs::write(&file, settings).unwrap();
        let child = Command::new("redis-server")
            .arg(&file)
            .arg("--sentinel")
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let sentinel = Sentinel { port, child, _dir: dir };
        until("a sentinel to answer", || sentinel.cli(&["ping"]) == "PONG");
        sentinel
    }

    fn cli(&self, words: &[&str]) -> String {
        let out = Command::new("redis-cli")
            .args(["-p", &self.port.to_string()])
            .args(words)
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

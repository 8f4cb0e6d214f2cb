//! A Redis server process.

use std::process::{Child, Command, Stdio};

use super::{free_port, until, until_stopped};

/// A running redis-server without persistence; killed when dropped.
pub struct RedisServer {
    pub port: u16,
    child: Child,
    dir: tempfile::TempDir,
}

impl RedisServer {
    pub fn start() -> RedisServer {
        RedisServer::with(free_port(), &[])
    }

    /// Starts a server with more settings.
    pub fn with(port: u16, settings: &[&str]) -> RedisServer {
        let dir = tempfile::tempdir().unwrap();
        let server = RedisServer { port, child: RedisServer::spawn(port, &dir, settings), dir };
        until("Redis to answer", || server.cli(&["ping"]) == "PONG");
        server
    }

    /// Restarts it after it was killed, in its directory and with these settings.
    #[allow(
        dead_code,
        reason = "only some of the test binaries that share this file restart servers"
    )]
    pub fn restart(&mut self, settings: &[&str]) {
        self.child = RedisServer::spawn(self.port, &self.dir, settings);
        until("Redis to answer again", || self.cli(&["ping"]) == "PONG");
    }

    /// Restarts it after it was killed, with an empty directory.
    #[allow(
        dead_code,
        reason = "only some of the test binaries that share this file restart servers"
    )]
    pub fn restart_empty(&mut self, settings: &[&str]) {
        self.dir = tempfile::tempdir().unwrap();
        self.restart(settings);
    }

    fn spawn(port: u16, dir: &tempfile::TempDir, settings: &[&str]) -> Child {
        Command::new("redis-server")
            .args([
                "--port",
                &port.to_string(),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--appendonly",
                "no",
            ])
            .arg("--dir")
            .arg(dir.path())
            .args(settings)
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is not installed: apt-get install redis-server")
    }

    pub fn url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub fn cli(&self, words: &[&str]) -> String {
        let out = Command::new("redis-cli")
            .args(["-p", &self.port.to_string()])
            .args(words)
            .output()
            .unwrap();
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    /// Whether this server is a primary.
    pub fn is_primary(&self) -> bool {
        self.cli(&["role"]).starts_with("master")
    }

    /// Returns the position of this primary's last write, and the position that each replica has.
    fn positions(&self) -> (u64, Vec<u64>) {
        let info = self.cli(&["info", "replication"]);
        let number = |text: &str| text.split(',').next().and_then(|digits| digits.parse().ok());
        let replicas = info.lines().filter(|line| line.contains("state=online"));
        let replicas = replicas.filter_map(|line| number(line.split_once(",offset=")?.1)).collect();
        let own =
            info.lines().find_map(|line| number(line.trim().strip_prefix("master_repl_offset:")?));
        (own.unwrap_or_default(), replicas)
    }

    /// Returns the position of the last write in this primary's stream to its replicas.
    pub fn position(&self) -> u64 {
        self.positions().0
    }

    /// Whether this many replicas have all writes up to a position. A primary that is written all
    /// the time is never copied whole, because replicas report their positions once a second.
    pub fn is_copied_up_to(&self, position: u64, replicas: usize) -> bool {
        self.positions().1.into_iter().filter(|copied| *copied >= position).count() >= replicas
    }

    /// Whether this many replicas have all writes of this primary.
    pub fn is_copied_to(&self, replicas: usize) -> bool {
        let (position, copied) = self.positions();
        copied.into_iter().filter(|copied| *copied >= position).count() >= replicas
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn signal(&self, name: &str) {
        let done = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(done.success());
        if name == "STOP" {
            until_stopped(self.child.id());
        }
    }
}

impl Drop for RedisServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

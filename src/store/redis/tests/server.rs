//! A real redis-server that ends with its test.

use std::fs::File;
use std::net::{Ipv4Addr, TcpListener};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use redis::aio::MultiplexedConnection;
use tempfile::TempDir;

use crate::store::redis::{Endpoint, Redis, RedisAck, RedisOptions};

/// How long a condition may take to come true.
pub(super) const PATIENCE: Duration = Duration::from_secs(20);

/// Pause between two checks of a condition.
const STEP: Duration = Duration::from_millis(10);

/// Attempts to start a server, because another process may take its port first.
const STARTS: usize = 5;

pub(super) struct TestServer {
    child: Child,
    pub(super) dir: TempDir,
    pub(super) port: u16,
    pub(super) tls_port: u16,
    settings: Vec<String>,
}

impl TestServer {
    pub(super) async fn start() -> TestServer {
        TestServer::start_with(&[]).await
    }

    /// Starts with more settings; `DIR` in them is the server's folder, where a test can put
    /// certificates.
    pub(super) async fn start_with(settings: &[&str]) -> TestServer {
        TestServer::start_in(tempfile::tempdir().unwrap(), settings).await
    }

    pub(super) async fn start_in(dir: TempDir, settings: &[&str]) -> TestServer {
        let settings: Vec<String> = settings
            .iter()
            .map(|setting| setting.replace("DIR", dir.path().to_str().unwrap()))
            .collect();
        let (port, tls_port) = (free_port(), free_port());
        let child = spawn(&dir, port, tls_port, &settings);
        let mut server = TestServer { child, dir, port, tls_port, settings };
        for _ in 0..STARTS {
            if server.answers().await {
                return server;
            }
            (server.port, server.tls_port) = (free_port(), free_port());
            server.child = spawn(&server.dir, server.port, server.tls_port, &server.settings);
        }
        panic!(
            "redis-server doesn't start: {}",
            std::fs::read_to_string(server.log()).unwrap_or_default()
        );
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub(super) fn socket(&self) -> String {
        self.dir.path().join("socket").to_str().unwrap().to_owned()
    }

    pub(super) fn tcp_url(&self) -> String {
        format!("redis://127.0.0.1:{}", self.port)
    }

    pub(super) fn unix_url(&self) -> String {
        format!("unix://{}", self.socket())
    }

    /// Makes a store on this server, with a timeout for a busy machine.
    pub(super) fn store(&self) -> Arc<Redis> {
        store(&self.tcp_url(), Duration::from_secs(5))
    }

    /// Opens a connection of the test, over the Unix socket. A test that disturbs TCP doesn't
    /// disturb this connection.
    pub(super) async fn admin(&self) -> MultiplexedConnection {
        redis::Client::open(self.unix_url())
            .unwrap()
            .get_multiplexed_async_connection()
            .await
            .unwrap()
    }

    /// Waits until the server answers; false if its process has ended.
    async fn answers(&mut self) -> bool {
        for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
            if self.child.try_wait().unwrap().is_some() {
                return false;
            }
            let client = redis::Client::open(self.unix_url()).unwrap();
            if client.get_multiplexed_async_connection().await.is_ok() {
                return true;
            }
            tokio::time::sleep(STEP).await;
        }
        false
    }

    pub(super) fn stop(&self) {
        self.signal("STOP");
    }

    pub(super) fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        // The built-in `kill` of the shell, because small images have no `kill` program.
        let kill = format!("kill -s {name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }

    pub(super) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts the server again on the same port, empty.
    pub(super) async fn come_back(&mut self) {
        self.child = spawn(&self.dir, self.port, self.tls_port, &self.settings);
        assert!(self.answers().await, "{}", std::fs::read_to_string(self.log()).unwrap());
    }
}

impl Drop for TestServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(super) fn options(url: &str, timeout: Duration) -> RedisOptions {
    let endpoint = Endpoint::Server(url.into());
    RedisOptions {
        endpoint,
        timeout,
        ca_file: None,
        client: None,
        ack: RedisAck::Memory,
        loss_pause: Duration::ZERO,
        breakers: Default::default(),
        namespace: "onceward".into(),
        features: Default::default(),
    }
}

pub(super) fn store(url: &str, timeout: Duration) -> Arc<Redis> {
    Redis::connect(options(url, timeout)).unwrap()
}

pub(super) async fn until(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
        if holds().await {
            return;
        }
        tokio::time::sleep(STEP).await;
    }
    panic!("never: {what}");
}

fn spawn(dir: &TempDir, port: u16, tls_port: u16, settings: &[String]) -> Child {
    let mut command = Command::new("redis-server");
    command.args([
        "--port",
        &port.to_string(),
        "--unixsocket",
        dir.path().join("socket").to_str().unwrap(),
    ]);
    command.args([
        "--bind",
        "127.0.0.1",
        "--save",
        "",
        "--appendonly",
        "no",
        "--dir",
        dir.path().to_str().unwrap(),
    ]);
    command.args(settings.iter().map(|setting| setting.replace("TLS_PORT", &tls_port.to_string())));
    let log = File::create(dir.path().join("log")).unwrap();
    match command.stdin(Stdio::null()).stdout(log).stderr(Stdio::null()).spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            panic!("redis-server is not installed: apt-get install redis-server")
        }
        Err(error) => panic!("redis-server doesn't start: {error}"),
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

//! A gateway process.

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use super::{Answer, Request, free_port, until};

/// A running gateway; killed when dropped.
pub struct Gateway {
    pub port: u16,
    pub admin: u16,
    config: tempfile::NamedTempFile,
    command: Command,
    child: Child,
    logs: Arc<Mutex<String>>,
    _dir: Option<tempfile::TempDir>,
}

/// The routes that most stories use: one key per caller, short lease.
pub const ROUTES: &str = r#"
[[routes]]
name = "payments"
path = "/v1/payments"
lease = "3s"
uncertain_after = "1s"
"#;

impl Gateway {
    /// Starts a gateway in front of an upstream, on its own embedded store, with the usual route.
    pub fn start(upstream: u16) -> Gateway {
        Gateway::with(upstream, "", ROUTES)
    }

    /// Does the same with settings before the routes, and other routes.
    pub fn with(upstream: u16, settings: &str, routes: &str) -> Gateway {
        let dir = tempfile::tempdir().unwrap();
        let store = format!("file:{}", dir.path().join("data").display());
        let mut gateway = Gateway::on(upstream, &store, settings, routes);
        gateway._dir = Some(dir);
        gateway
    }

    /// Starts a gateway in front of an upstream's URL, with settings before the usual route.
    pub fn to(url: &str, settings: &str) -> Gateway {
        Gateway::to_routes(url, settings, ROUTES)
    }

    /// Starts a gateway in front of an upstream's URL, with settings before the routes, and routes.
    pub fn to_routes(url: &str, settings: &str, routes: &str) -> Gateway {
        let dir = tempfile::tempdir().unwrap();
        let store = format!("file:{}", dir.path().join("data").display());
        let mut gateway = Gateway::launch(url, &store, settings, routes, |_| {});
        gateway._dir = Some(dir);
        until("the gateway to be ready", || gateway.is_ready());
        gateway
    }

    /// Starts a gateway on a given store.
    pub fn on(upstream: u16, store: &str, settings: &str, routes: &str) -> Gateway {
        let gateway = Gateway::spawn(upstream, store, settings, routes);
        until("the gateway to be ready", || gateway.is_ready());
        gateway
    }

    /// Starts a gateway without waiting until it is ready.
    pub fn spawn(upstream: u16, store: &str, settings: &str, routes: &str) -> Gateway {
        Gateway::launch(&format!("http://127.0.0.1:{upstream}"), store, settings, routes, |_| {})
    }

    /// Starts a gateway without waiting; `adjust` may change its command.
    pub fn launch(
        url: &str,
        store: &str,
        settings: &str,
        routes: &str,
        adjust: impl FnOnce(&mut Command),
    ) -> Gateway {
        let port = free_port();
        Gateway::begin_as("run", url, store, &format!("{settings}\n{routes}"), |command| {
            command.args(["--listen", &format!("127.0.0.1:{port}")]);
            adjust(command);
        })
        .with_port(port)
    }

    /// Starts a relay without waiting; `adjust` may change its command. It has no port.
    #[allow(dead_code, reason = "only some of the test binaries that share this file start relays")]
    pub fn relay(url: &str, store: &str, file: &str, adjust: impl FnOnce(&mut Command)) -> Gateway {
        Gateway::begin_as("relay", url, store, file, adjust)
    }

    fn with_port(self, port: u16) -> Gateway {
        let mut gateway = self;
        gateway.port = port;
        gateway
    }

    fn begin_as(
        verb: &str,
        url: &str,
        store: &str,
        file: &str,
        adjust: impl FnOnce(&mut Command),
    ) -> Gateway {
        let admin = free_port();
        let config = tempfile::NamedTempFile::with_suffix(".toml").unwrap();
        std::fs::write(config.path(), file).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_onceward"));
        command.args([verb, "--config"]).arg(config.path());
        command.args(["--upstream", url, "--store", store]);
        command.args(["--admin", &format!("127.0.0.1:{admin}")]);
        command
            .env("ONCEWARD_LOG", "onceward=debug")
            .env("ADMIN_TOKEN", "letmein")
            .env("READ_TOKEN", "letmesee");
        command.env("HASHING_SECRET", "a secret of the stories, of 32 bytes and more");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        adjust(&mut command);
        let logs = Arc::new(Mutex::new(String::new()));
        let child = Gateway::begin(&mut command, &logs);
        Gateway { port: 0, admin, config, command, child, logs, _dir: None }
    }

    fn begin(command: &mut Command, logs: &Arc<Mutex<String>>) -> Child {
        let mut child = command.spawn().unwrap();
        // A story may have replaced stderr by its own pipe.
        let Some(mut stderr) = child.stderr.take() else { return child };
        let sink = logs.clone();
        std::thread::spawn(move || {
            let mut chunk = [0; 4096];
            while let Ok(n @ 1..) = stderr.read(&mut chunk) {
                sink.lock().unwrap().push_str(&String::from_utf8_lossy(&chunk[..n]));
            }
        });
        child
    }

    /// Starts an ended gateway again, with the same command and its current configuration file.
    #[allow(
        dead_code,
        reason = "only some of the test binaries that share this file start gateways again"
    )]
    pub fn start_again(&mut self) {
        self.child = Gateway::begin(&mut self.command, &self.logs);
        until("the gateway to be ready again", || self.is_ready());
    }

    pub fn is_ready(&self) -> bool {
        std::net::TcpStream::connect(("127.0.0.1", self.admin)).is_ok()
            && self.ask("GET", "/readyz").status == 200
    }

    /// Sends a request to the admin port.
    pub fn ask(&self, method: &str, target: &str) -> Answer {
        Request::new(method, target).host("127.0.0.1").send(self.admin)
    }

    pub fn metric(&self, line: &str) -> f64 {
        let text = self.ask("GET", "/metrics").text();
        let found = text.lines().find_map(|l| l.strip_prefix(line));
        found.map_or(0.0, |value| value.trim().parse().unwrap())
    }

    pub fn logs(&self) -> String {
        self.logs.lock().unwrap().clone()
    }

    /// Waits until the log contains a text: a line may be written after the answer to its request.
    #[track_caller]
    #[allow(
        dead_code,
        reason = "only some of the test binaries that share this file look into logs"
    )]
    pub fn logged(&self, text: &str) {
        until(&format!("the log to contain {text:?}"), || self.logs().contains(text));
    }

    pub fn signal(&self, name: &str) {
        let done = Command::new("kill")
            .args([&format!("-{name}"), &self.child.id().to_string()])
            .status()
            .unwrap();
        assert!(done.success());
    }

    /// Returns the path of its configuration file.
    pub fn config(&self) -> &Path {
        self.config.path()
    }

    /// Returns its process id.
    pub fn process(&self) -> u32 {
        self.child.id()
    }

    /// Returns its resident memory in bytes.
    #[allow(dead_code, reason = "only some of the test binaries that share this file look at that")]
    pub fn resident_bytes(&self) -> usize {
        resident_bytes(self.process())
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    pub fn wait(&mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }
}

/// Returns the resident memory of a process in bytes; 0 after it has ended.
#[allow(dead_code, reason = "only some of the test binaries that share this file look at that")]
pub fn resident_bytes(process: u32) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    resident.map_or(0, |line| line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() * 1024)
}

impl Drop for Gateway {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the gateway's log\n{}", self.logs());
        }
    }
}

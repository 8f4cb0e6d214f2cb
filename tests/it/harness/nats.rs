//! A NATS server process.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::{free_port, until, until_stopped};

/// A running nats-server with JetStream; killed when dropped.
pub struct NatsServer {
    pub port: u16,
    child: Child,
    dir: tempfile::TempDir,
}

impl NatsServer {
    pub fn start() -> NatsServer {
        NatsServer::with("")
    }

    /// Starts a server with more lines of its configuration.
    pub fn with(lines: &str) -> NatsServer {
        let (dir, port) = (tempfile::tempdir().unwrap(), free_port());
        let store = dir.path().join("store");
        let config =
            format!("listen: 127.0.0.1:{port}\njetstream {{ store_dir: {store:?} }}\n{lines}\n");
        std::fs::write(dir.path().join("nats.conf"), config).unwrap();
        let server = NatsServer { port, child: NatsServer::spawn(dir.path()), dir };
        server.until_ready();
        server
    }

    /// Restarts it after it was killed, with its streams.
    pub fn restart(&mut self) {
        self.child = NatsServer::spawn(self.dir.path());
        self.until_ready();
    }

    fn spawn(dir: &Path) -> Child {
        // Distributions put it where only root looks.
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        Command::new("nats-server")
            .env("PATH", path)
            .arg("-c")
            .arg(dir.join("nats.conf"))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("nats-server is not installed: apt-get install nats-server")
    }

    /// Its first line comes when it accepts clients.
    fn until_ready(&self) {
        until("NATS to answer", || {
            TcpStream::connect(("127.0.0.1", self.port)).is_ok_and(|mut stream| {
                stream.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
                stream.read(&mut [0; 4]).is_ok_and(|read| read > 0)
            })
        });
    }

    pub fn url(&self) -> String {
        format!("nats://127.0.0.1:{}", self.port)
    }

    /// Asks its API of JetStream. Waits until the API is ready.
    pub fn api(&self, subject: &str, request: &str) -> serde_json::Value {
        let mut answer = None;
        until("JetStream to answer", || {
            answer = self.try_api(subject, request);
            answer.is_some()
        });
        answer.unwrap()
    }

    fn try_api(&self, subject: &str, request: &str) -> Option<serde_json::Value> {
        let mut stream = TcpStream::connect(("127.0.0.1", self.port)).ok()?;
        stream.set_read_timeout(Some(Duration::from_secs(1))).ok()?;
        let length = request.len();
        let connect = "CONNECT {\"verbose\":false,\"pedantic\":false}\r\nSUB in 1\r\n";
        write!(stream, "{connect}PUB $JS.API.{subject} in {length}\r\n{request}\r\n").ok()?;
        let mut read = Vec::new();
        loop {
            let mut part = [0; 4096];
            let count = stream.read(&mut part).ok().filter(|count| *count > 0)?;
            read.extend(&part[..count]);
            // After the head of the answer comes its body, which is one JSON document.
            let text = String::from_utf8_lossy(&read).into_owned();
            let Some((_, answer)) = text.split_once("\r\nMSG in 1 ") else { continue };
            let Some((_, body)) = answer.split_once("\r\n") else { continue };
            let first = serde_json::Deserializer::from_str(body).into_iter().next();
            match first {
                Some(Ok(document)) => return Some(document),
                _ => continue,
            }
        }
    }

    /// Creates a stream, which is kept in files.
    pub fn create_stream(&self, name: &str, subject: &str) {
        let config = format!(r#"{{"name":"{name}","subjects":["{subject}"],"storage":"file"}}"#);
        let answer = self.api(&format!("STREAM.CREATE.{name}"), &config);
        assert!(answer.get("error").is_none(), "{answer}");
    }

    /// Returns the number of messages in a stream.
    pub fn messages(&self, stream: &str) -> u64 {
        self.api(&format!("STREAM.INFO.{stream}"), "")["state"]["messages"].as_u64().unwrap()
    }

    /// Returns the header and the payload of a message, by its number from 1.
    pub fn message(&self, stream: &str, number: u64) -> (String, String) {
        let answer =
            self.api(&format!("STREAM.MSG.GET.{stream}"), &format!("{{\"seq\":{number}}}"));
        let part = |name: &str| {
            use base64::Engine as _;
            let encoded = answer["message"][name].as_str().unwrap_or_default();
            let bytes = base64::engine::general_purpose::STANDARD.decode(encoded).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        (part("hdrs"), part("data"))
    }

    pub fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Stops its process until [`NatsServer::resume`].
    pub fn pause(&self) {
        self.signal("STOP");
        until_stopped(self.child.id());
    }

    pub fn resume(&self) {
        self.signal("CONT");
    }

    fn signal(&self, name: &str) {
        let kill = format!("kill -s {name} {}", self.child.id());
        assert!(Command::new("sh").args(["-c", &kill]).status().unwrap().success());
    }
}

impl Drop for NatsServer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

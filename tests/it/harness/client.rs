//! A client that writes bytes and reads answers, so that a test controls each byte.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use http::{HeaderValue, Response};
use http_body::Body;
use http_body_util::BodyExt;

use super::PATIENCE;

/// A request, written by hand.
#[derive(Clone)]
pub struct Request {
    method: String,
    target: String,
    host: String,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

/// A received answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    pub status: u16,
    pub fields: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl Request {
    pub fn new(method: &str, target: &str) -> Request {
        Request {
            method: method.into(),
            target: target.into(),
            host: "pay.example".into(),
            fields: vec![],
            body: vec![],
        }
    }

    pub fn host(mut self, host: &str) -> Request {
        self.host = host.into();
        self
    }

    /// A payment with a key.
    pub fn pay(key: &str, body: &str) -> Request {
        Request::new("POST", "/v1/payments").field("Idempotency-Key", key).json(body)
    }

    pub fn field(mut self, name: &str, value: &str) -> Request {
        self.fields.push((name.into(), value.into()));
        self
    }

    /// Sets the upstream's script; see `upstream.rs`.
    pub fn act(self, script: &str) -> Request {
        self.field("X-Act", script)
    }

    pub fn json(self, body: &str) -> Request {
        let mut request = self.field("Content-Type", "application/json");
        request.body = body.as_bytes().to_vec();
        request
    }

    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Request {
        self.body = body.into();
        self
    }

    pub fn bytes(&self) -> Vec<u8> {
        let mut out =
            format!("{} {} HTTP/1.1\r\nHost: {}\r\n", self.method, self.target, self.host);
        for (name, value) in &self.fields {
            out.push_str(&format!("{name}: {value}\r\n"));
        }
        let framed =
            self.fields.iter().any(|(name, _)| name.eq_ignore_ascii_case("transfer-encoding"));
        if !framed && (!self.body.is_empty() || self.method == "POST") {
            out.push_str(&format!("Content-Length: {}\r\n", self.body.len()));
        }
        out.push_str("\r\n");
        let mut out = out.into_bytes();
        out.extend_from_slice(&self.body);
        out
    }

    /// Sends the request on a new connection.
    pub fn send(&self, port: u16) -> Answer {
        Connection::open(port).exchange(self)
    }

    /// Sends the request on a new thread.
    pub fn send_aside(&self, port: u16) -> std::thread::JoinHandle<Answer> {
        let request = self.clone();
        std::thread::spawn(move || request.send(port))
    }
}

impl Answer {
    /// Converts an answer that a library has parsed.
    pub async fn read<B: Body>(response: Response<B>) -> Result<Answer, B::Error> {
        let (parts, body) = response.into_parts();
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let fields =
            parts.headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect();
        Ok(Answer {
            status: parts.status.as_u16(),
            fields,
            body: body.collect().await?.to_bytes().to_vec(),
        })
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.fields
            .iter()
            .find(|(n, _)| n.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {}", self.text()))
    }

    /// Returns the last part of a problem's type.
    pub fn problem(&self) -> String {
        assert_eq!(self.get("content-type"), Some("application/problem+json"), "{self:?}");
        self.json()["type"].as_str().unwrap().rsplit(':').next().unwrap().to_owned()
    }

    pub fn replayed(&self) -> bool {
        self.get("idempotent-replayed") == Some("true")
    }
}

/// Connects to a port of this machine from one of its addresses.
#[allow(
    dead_code,
    reason = "only some of the test binaries that share this file connect from other addresses"
)]
pub fn dial(address: &str, port: u16) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    let address: std::net::IpAddr = address.parse().unwrap();
    socket.bind(&std::net::SocketAddr::new(address, 0).into()).unwrap();
    socket.connect(&std::net::SocketAddr::from(([127, 0, 0, 1], port)).into()).unwrap();
    let stream = TcpStream::from(socket);
    stream.set_nodelay(true).unwrap();
    stream
}

/// An open connection.
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    pub fn open(port: u16) -> Connection {
        Connection::try_open(port, PATIENCE).unwrap()
    }

    /// Opens a connection with a timeout for each read. `None` if nobody listens.
    pub fn try_open(port: u16, patience: Duration) -> Option<Connection> {
        let stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
        stream.set_read_timeout(Some(patience)).unwrap();
        stream.set_nodelay(true).unwrap();
        Some(Connection { reader: BufReader::new(stream) })
    }

    /// Opens a connection from one of this machine's own addresses, such as 127.0.0.2.
    #[allow(
        dead_code,
        reason = "only some of the test binaries that share this file connect from other addresses"
    )]
    pub fn from(address: &str, port: u16) -> Connection {
        let stream = dial(address, port);
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Connection { reader: BufReader::new(stream) }
    }

    pub fn write(&mut self, bytes: &[u8]) {
        self.reader.get_mut().write_all(bytes).unwrap();
    }

    /// Writes the bytes; returns `false` if the connection failed.
    pub fn try_write(&mut self, bytes: &[u8]) -> bool {
        self.reader.get_mut().write_all(bytes).is_ok()
    }

    pub fn half_close(&mut self) {
        self.reader.get_mut().shutdown(Shutdown::Write).unwrap();
    }

    pub fn exchange(&mut self, request: &Request) -> Answer {
        self.write(&request.bytes());
        self.read_for(&request.method)
    }

    pub fn read(&mut self) -> Answer {
        self.read_for("POST")
    }

    /// Whether the peer has closed the connection and sent nothing more.
    pub fn is_closed(&mut self) -> bool {
        matches!(self.reader.read(&mut [0; 1]), Ok(0) | Err(_))
    }

    /// Whether the peer closes within the connection's timeout; bytes that it sends before are
    /// dropped.
    #[allow(
        dead_code,
        reason = "only some of the test binaries that share this file wait for that"
    )]
    pub fn ends(&mut self) -> bool {
        self.reader.read_to_end(&mut Vec::new()).is_ok()
    }

    pub fn read_for(&mut self, method: &str) -> Answer {
        self.try_read(method).unwrap_or_else(|| panic!("the connection ended without an answer"))
    }

    /// Reads the answer; `None` if the connection ended before it was complete.
    pub fn try_read(&mut self, method: &str) -> Option<Answer> {
        let (status, fields) = loop {
            let line = self.line()?;
            let status: u16 = line.split(' ').nth(1).unwrap().parse().unwrap();
            let mut fields = vec![];
            loop {
                let line = self.line()?;
                if line.is_empty() {
                    break;
                }
                let (name, value) = line.split_once(':').unwrap();
                fields.push((name.to_ascii_lowercase(), value.trim().to_owned()));
            }
            if status >= 200 || status == 101 {
                break (status, fields);
            }
        };
        let mut answer = Answer { status, fields, body: vec![] };
        if method == "HEAD" || matches!(status, 101 | 204 | 304) {
            return Some(answer);
        }
        if answer.get("transfer-encoding") == Some("chunked") {
            loop {
                let size =
                    usize::from_str_radix(self.line()?.split(';').next().unwrap(), 16).unwrap();
                let mut chunk = vec![0; size];
                self.reader.read_exact(&mut chunk).ok()?;
                answer.body.extend_from_slice(&chunk);
                self.line()?;
                if size == 0 {
                    return Some(answer);
                }
            }
        }
        match answer.get("content-length") {
            Some(length) => {
                answer.body = vec![0; length.parse().unwrap()];
                self.reader.read_exact(&mut answer.body).ok()?;
            }
            None => {
                self.reader.read_to_end(&mut answer.body).ok()?;
            }
        }
        Some(answer)
    }

    fn line(&mut self) -> Option<String> {
        let mut line = vec![];
        self.reader.read_until(b'\n', &mut line).ok()?;
        line.strip_suffix(b"\r\n").map(|line| String::from_utf8_lossy(line).into_owned())
    }
}

//! A client for one HTTP/2 connection, with prior knowledge or by TLS.

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::Full;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;

use super::{Answer, PATIENCE};

/// An HTTP/2 connection.
pub struct Streams {
    sender: SendRequest<Full<Bytes>>,
    runtime: Runtime,
}

/// A pending answer.
pub struct Pending<'a> {
    task: JoinHandle<hyper::Result<Answer>>,
    runtime: &'a Runtime,
}

impl Streams {
    pub fn open(port: u16) -> Streams {
        Streams::over(async move { connect(port).await })
    }

    /// Connects by TLS.
    pub fn open_by_tls(port: u16, client: Arc<ClientConfig>) -> Streams {
        let name = ServerName::try_from("127.0.0.1").unwrap();
        Streams::over(async move {
            TlsConnector::from(client).connect(name, connect(port).await).await.unwrap()
        })
    }

    fn over<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
        connecting: impl Future<Output = T>,
    ) -> Streams {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let sender = runtime.block_on(async {
            let (sender, driver) =
                http2::handshake(TokioExecutor::new(), TokioIo::new(connecting.await))
                    .await
                    .unwrap();
            tokio::spawn(driver);
            sender
        });
        Streams { sender, runtime }
    }

    /// Builds a payment with a key and more fields.
    pub fn pay(key: &str, body: &str, fields: &[(&str, &str)]) -> Request<Full<Bytes>> {
        let mut request = Request::post("http://pay.example/v1/payments")
            .header("idempotency-key", key)
            .header("content-type", "application/json");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap()
    }

    /// Sends a request on a new stream without waiting for its answer.
    pub fn begin(&self, request: Request<Full<Bytes>>) -> Pending<'_> {
        let answer = self.sender.clone().send_request(request);
        let task = self.runtime.spawn(async move { Answer::read(answer.await?).await });
        Pending { task, runtime: &self.runtime }
    }

    pub fn send(&self, request: Request<Full<Bytes>>) -> Answer {
        self.begin(request).wait()
    }
}

async fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

impl Pending<'_> {
    pub fn wait(self) -> Answer {
        let answer =
            self.runtime.block_on(async { tokio::time::timeout(PATIENCE, self.task).await });
        answer.expect("an answer in time").unwrap().unwrap()
    }

    /// Resets the stream.
    pub fn reset(self) {
        self.task.abort();
        // Dropping the task resets the stream.
        assert!(self.runtime.block_on(self.task).unwrap_err().is_cancelled());
    }
}

//! Tunnels: connections that switched their protocol (WebSocket). The gateway joins both sides
//! until one side ends.
//!
//! Danger: a tunnel can stay open forever. So an open tunnel counts as a connection and as an
//! active request. It ends when no bytes pass for too long, and when the gateway drains.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Request;
use http::header::UPGRADE;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf, copy_bidirectional};
use tokio_util::sync::CancellationToken;

use crate::gate::{Movement, SharedPermit};

/// The limits of a tunnel. They are an extension of each request for an upgrade.
#[derive(Debug, Clone)]
pub(super) struct TunnelTerms {
    /// A tunnel ends when neither side has sent a byte for this long.
    pub idle_timeout: Duration,
    /// Cancelled when the gateway drains.
    pub closing: CancellationToken,
}

impl TunnelTerms {
    /// Adds the limits to a request that wants an upgrade.
    pub fn accompany<B>(&self, request: &mut Request<B>) {
        if request.headers().contains_key(UPGRADE) {
            request.extensions_mut().insert(self.clone());
        }
    }
}

/// Joins the client's side and the upstream's side in a new task. `permit` is held until the tunnel
/// ends. Without `terms` the tunnel lasts until one side ends it.
pub(super) fn tunnel(
    client: OnUpgrade,
    upstream: OnUpgrade,
    terms: Option<TunnelTerms>,
    permit: Option<SharedPermit>,
) {
    tokio::spawn(async move {
        let _held = permit;
        let (Ok(client), Ok(upstream)) = tokio::join!(client, upstream) else { return };
        let movement = Movement::begin();
        let mut client = ObservedStream { io: TokioIo::new(client), movement: movement.clone() };
        let mut upstream = TokioIo::new(upstream);
        let ended = async {
            match &terms {
                Some(terms) => tokio::select! {
                    () = terms.closing.cancelled() => "the gateway drains",
                    () = movement.ceased(terms.idle_timeout) => "no byte passed for too long",
                },
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            copied = copy_bidirectional(&mut client, &mut upstream) => {
                if let Err(error) = copied {
                    tracing::debug!(%error, "a tunnel failed");
                }
            }
            reason = ended => tracing::debug!(reason, "closed a tunnel"),
        }
    });
}

/// The client's side of a tunnel. All bytes of both directions pass through it, and it records the
/// time of each transfer.
struct ObservedStream<T> {
    io: T,
    movement: Movement,
}

impl<T: AsyncRead + Unpin> AsyncRead for ObservedStream<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.io).poll_read(cx, buffer);
        if buffer.filled().len() > before {
            self.movement.note();
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ObservedStream<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, bytes);
        if matches!(written, Poll::Ready(Ok(1..))) {
            self.movement.note();
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

//! The socket of a client connection: plain TCP, or TLS.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::tls::subject;

/// The socket of a client connection.
pub(in crate::proxy) enum TlsSocket {
    /// Plain TCP.
    Plain(TcpStream),
    /// TLS. It is boxed, because it is many times larger.
    Tls(Box<TlsStream<TcpStream>>),
}

impl TlsSocket {
    /// Returns the subject of the client's certificate.
    pub fn client_subject(&self) -> Option<Bytes> {
        match self {
            TlsSocket::Plain(_) => None,
            TlsSocket::Tls(stream) => {
                stream.get_ref().1.peer_certificates()?.first().and_then(subject)
            }
        }
    }
}

impl AsyncRead for TlsSocket {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            TlsSocket::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            TlsSocket::Tls(stream) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for TlsSocket {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            TlsSocket::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            TlsSocket::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            TlsSocket::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            TlsSocket::Tls(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            TlsSocket::Plain(stream) => stream.is_write_vectored(),
            TlsSocket::Tls(stream) => stream.is_write_vectored(),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            TlsSocket::Plain(stream) => Pin::new(stream).poll_flush(cx),
            TlsSocket::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            TlsSocket::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            TlsSocket::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

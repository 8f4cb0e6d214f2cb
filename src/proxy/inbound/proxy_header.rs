//! The PROXY protocol, versions 1 and 2: a proxy that forwards bytes announces the client's
//! address.
//!
//! Danger: a sender of the header can claim any address. So the gateway reads the header from
//! trusted proxies only, and requires it on each of their connections. If the header were optional,
//! a client of the proxy could send one itself.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// The first bytes of a header of version 2. No request and no TLS handshake begins with them.
const SIGNATURE: [u8; 12] = *b"\r\n\r\n\0\r\nQUIT\n";

/// The first bytes of a header of version 1.
const VERSION_1: &[u8] = b"PROXY ";

/// Longest line of version 1, its CR LF included, in bytes.
const LINE_MAX: usize = 107;

/// Why a connection has no valid PROXY header.
#[derive(Debug, thiserror::Error)]
enum ProxyHeaderError {
    /// The connection was closed before a byte arrived, for example by a health check.
    #[error("the connection was closed unused")]
    Unused,
    /// The first bytes don't begin a header.
    #[error(
        "the connection does not begin with a PROXY header \
         (send-proxy or send-proxy-v2 at the proxy)"
    )]
    Absent,
    /// The header begins correctly, but is malformed.
    #[error("the PROXY header is malformed: {0}")]
    Malformed(&'static str),
    /// The connection broke.
    #[error("the connection ended in the PROXY header: {0}")]
    Broken(#[from] io::Error),
    /// The header did not arrive in time.
    #[error("the PROXY header did not arrive in time")]
    TooLate,
}

/// Reads the header of a trusted proxy's connection and returns the address of its client. If the
/// proxy announces itself (LOCAL, UNKNOWN), returns the proxy's own address. If the connection has
/// to be closed, logs the reason and returns `None`.
pub(in crate::proxy) async fn announced_client<S>(
    stream: &mut S,
    proxy: IpAddr,
    limit: Duration,
    closing: &CancellationToken,
) -> Option<IpAddr>
where
    S: AsyncRead + Unpin,
{
    let announced = tokio::select! {
        biased;
        () = closing.cancelled() => return None,
        announced = timeout(limit, read(stream)) => {
            announced.unwrap_or(Err(ProxyHeaderError::TooLate))
        }
    };
    match announced {
        Ok(client) => Some(client.unwrap_or(proxy)),
        Err(ProxyHeaderError::Unused) => {
            tracing::debug!(%proxy, "a trusted proxy closed a connection without using it");
            None
        }
        Err(error) => {
            tracing::warn!(
                %proxy,
                %error,
                "closed a trusted proxy's connection: with proxy_protocol = true the proxy must \
                 send a PROXY header on each"
            );
            None
        }
    }
}

/// Reads a header, and no byte after it. Returns `None` if the proxy announces itself.
async fn read<S: AsyncRead + Unpin>(stream: &mut S) -> Result<Option<IpAddr>, ProxyHeaderError> {
    let mut start = [0; SIGNATURE.len()];
    let mut filled = 0;
    while filled < start.len() {
        match stream.read(&mut start[filled..]).await? {
            0 if filled == 0 => return Err(ProxyHeaderError::Unused),
            0 => return Err(ProxyHeaderError::Absent),
            more => filled += more,
        }
        let read = &start[..filled];
        // Bytes that can't begin a header are refused at once, without waiting for more bytes.
        let common = filled.min(VERSION_1.len());
        if !SIGNATURE.starts_with(read) && read[..common] != VERSION_1[..common] {
            return Err(ProxyHeaderError::Absent);
        }
    }
    if start == SIGNATURE { version_2(stream).await } else { version_1(stream, &start).await }
}

/// Reads the rest of the line byte by byte, because the bytes after it are the client's.
async fn version_1<S: AsyncRead + Unpin>(
    stream: &mut S,
    start: &[u8],
) -> Result<Option<IpAddr>, ProxyHeaderError> {
    let mut line = Vec::with_capacity(LINE_MAX);
    line.extend_from_slice(start);
    while !line.ends_with(b"\r\n") {
        if line.len() == LINE_MAX {
            return Err(ProxyHeaderError::Malformed("its line is too long"));
        }
        line.push(stream.read_u8().await?);
    }
    let text = std::str::from_utf8(&line)
        .map_err(|_| ProxyHeaderError::Malformed("its line is not ASCII"))?;
    let words: Vec<&str> = text.trim_end_matches("\r\n").split(' ').collect();
    let is_port = |port: &str| port.parse::<u16>().is_ok_and(|number| number.to_string() == port);
    match words.as_slice() {
        ["PROXY", "UNKNOWN", ..] => Ok(None),
        ["PROXY", family @ ("TCP4" | "TCP6"), source, destination, from, to]
            if is_port(from) && is_port(to) =>
        {
            let address = |text: &str| match *family {
                "TCP4" => text.parse::<Ipv4Addr>().ok().map(IpAddr::V4),
                _ => text.parse::<Ipv6Addr>().ok().map(IpAddr::V6),
            };
            match (address(source), address(destination)) {
                (Some(source), Some(_)) => Ok(Some(source.to_canonical())),
                _ => Err(ProxyHeaderError::Malformed("its addresses are not of its family")),
            }
        }
        _ => Err(ProxyHeaderError::Malformed(
            "its line is not a family, two addresses and two ports",
        )),
    }
}

/// Reads the rest of a header of version 2. Skips the TLVs after the addresses, at most 64 KiB.
async fn version_2<S: AsyncRead + Unpin>(
    stream: &mut S,
) -> Result<Option<IpAddr>, ProxyHeaderError> {
    let [command, family] = [stream.read_u8().await?, stream.read_u8().await?];
    let length = usize::from(stream.read_u16().await?);
    let mut addresses = [0; 36];
    let addresses = &mut addresses[..length.min(36)];
    stream.read_exact(addresses).await?;
    skip(stream, length - addresses.len()).await?;
    match command {
        0x20 => return Ok(None),
        0x21 => {}
        _ => return Err(ProxyHeaderError::Malformed("its version or command is unknown")),
    }
    match family {
        // The address family is unspecified, or a socket of the proxy's own machine.
        0x00 | 0x31 => Ok(None),
        0x11 => match addresses.first_chunk::<12>() {
            Some(&[a, b, c, d, ..]) => Ok(Some(Ipv4Addr::new(a, b, c, d).into())),
            None => Err(ProxyHeaderError::Malformed("it is too short for its addresses")),
        },
        0x21 => match (addresses.len(), addresses.first_chunk::<16>()) {
            (36, Some(source)) => Ok(Some(IpAddr::from(Ipv6Addr::from(*source)).to_canonical())),
            _ => Err(ProxyHeaderError::Malformed("it is too short for its addresses")),
        },
        _ => Err(ProxyHeaderError::Malformed("its family is not TCP over IPv4 or IPv6")),
    }
}

async fn skip<S: AsyncRead + Unpin>(stream: &mut S, mut bytes: usize) -> io::Result<()> {
    let mut scratch = [0; 512];
    while bytes > 0 {
        let piece = &mut scratch[..bytes.min(512)];
        stream.read_exact(piece).await?;
        bytes -= piece.len();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the announced client, and the bytes after the header.
    async fn announced(bytes: &[u8]) -> (Result<Option<String>, String>, Vec<u8>) {
        let mut rest = bytes;
        let read = read(&mut rest).await;
        let read = read.map(|client| client.map(|client| client.to_string()));
        (read.map_err(|error| error.to_string()), rest.to_vec())
    }

    fn version_2(command: u8, family: u8, addresses: &[u8]) -> Vec<u8> {
        let length = u16::try_from(addresses.len()).unwrap().to_be_bytes();
        [&SIGNATURE[..], &[command, family], &length, addresses].concat()
    }

    const V4: [u8; 12] = [203, 0, 113, 7, 127, 0, 0, 1, 0xd4, 0x31, 0, 80];

    fn v6() -> Vec<u8> {
        let [source, destination] =
            ["2001:db8::7", "::1"].map(|text| text.parse::<Ipv6Addr>().unwrap().octets());
        [&source[..], &destination, &[0xd4, 0x31, 0, 80]].concat()
    }

    #[tokio::test]
    async fn a_header_names_the_client_and_nothing_behind_it_is_read() {
        let mapped =
            [&"::ffff:203.0.113.7".parse::<Ipv6Addr>().unwrap().octets()[..], &v6()[16..]].concat();
        for (bytes, client) in [
            (b"PROXY TCP4 203.0.113.7 127.0.0.1 54321 80\r\n".to_vec(), Some("203.0.113.7")),
            (b"PROXY TCP6 2001:db8::7 ::1 54321 0\r\n".to_vec(), Some("2001:db8::7")),
            (b"PROXY TCP6 ::ffff:203.0.113.7 ::1 54321 0\r\n".to_vec(), Some("203.0.113.7")),
            (b"PROXY UNKNOWN\r\n".to_vec(), None),
            (b"PROXY UNKNOWN ffff::1 ffff::2 65535 65535\r\n".to_vec(), None),
            (version_2(0x21, 0x11, &V4), Some("203.0.113.7")),
            (version_2(0x21, 0x11, &[&V4[..], &[4; 3000]].concat()), Some("203.0.113.7")),
            (version_2(0x21, 0x21, &v6()), Some("2001:db8::7")),
            (version_2(0x21, 0x21, &[&v6()[..], &[4; 65_000]].concat()), Some("2001:db8::7")),
            (version_2(0x21, 0x21, &mapped), Some("203.0.113.7")),
            (version_2(0x20, 0x00, &[]), None),
            (version_2(0x20, 0x11, &V4), None),
            (version_2(0x21, 0x00, &[1, 2, 3]), None),
            (version_2(0x21, 0x31, &[0; 216]), None),
        ] {
            let whole = [&bytes[..], b"GET / HTTP/1.1\r\n"].concat();
            let expected = (Ok(client.map(str::to_owned)), b"GET / HTTP/1.1\r\n".to_vec());
            assert_eq!(announced(&whole).await, expected, "{}", String::from_utf8_lossy(&bytes));
            for end in 1..bytes.len().min(200) {
                assert!(
                    announced(&bytes[..end]).await.0.is_err(),
                    "cut off at {end}: {}",
                    String::from_utf8_lossy(&bytes)
                );
            }
        }
    }

    #[tokio::test]
    async fn bytes_without_a_valid_header_are_refused() {
        let long = format!("PROXY UNKNOWN {}\r\n", "x".repeat(LINE_MAX));
        for (bytes, piece) in [
            (&b""[..], "closed unused"),
            (b"GET / HTTP/1.1\r\n", "does not begin with a PROXY header"),
            (b"\x16\x03\x01", "does not begin with a PROXY header"),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "does not begin with a PROXY header"),
            (b"proxy TCP4 203.0.113.7 127.0.0.1 1 2\r\n", "does not begin with a PROXY header"),
            (
                b"PROXY TCP4 203.0.113.7 127.0.0.1 1\r\n",
                "not a family, two addresses and two ports",
            ),
            (
                b"PROXY TCP4 203.0.113.7 127.0.0.1 1 2 3\r\n",
                "not a family, two addresses and two ports",
            ),
            (
                b"PROXY TCP4  203.0.113.7 127.0.0.1 1 2\r\n",
                "not a family, two addresses and two ports",
            ),
            (
                b"PROXY TCP4 203.0.113.7 127.0.0.1 01 2\r\n",
                "not a family, two addresses and two ports",
            ),
            (
                b"PROXY TCP4 203.0.113.7 127.0.0.1 1 65536\r\n",
                "not a family, two addresses and two ports",
            ),
            (
                b"PROXY UDP4 203.0.113.7 127.0.0.1 1 2\r\n",
                "not a family, two addresses and two ports",
            ),
            (b"PROXY TCP4 2001:db8::7 ::1 1 2\r\n", "not of its family"),
            (b"PROXY TCP6 203.0.113.7 127.0.0.1 1 2\r\n", "not of its family"),
            (b"PROXY TCP4 203.0.113.\xff 127.0.0.1 1 2\r\n", "not ASCII"),
            (long.as_bytes(), "too long"),
            (&version_2(0x11, 0x11, &V4), "version or command"),
            (&version_2(0x22, 0x11, &V4), "version or command"),
            (&version_2(0x21, 0x12, &V4), "family"),
            (&version_2(0x21, 0x11, &V4[..11]), "too short"),
            (&version_2(0x21, 0x21, &V4), "too short"),
        ] {
            let refused = announced(bytes).await.0.unwrap_err();
            assert!(refused.contains(piece), "{}: {refused}", String::from_utf8_lossy(bytes));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_header_has_a_time_limit_and_its_wait_ends_with_the_listener() {
        let (_proxy, mut stream) = tokio::io::duplex(64);
        let (own, closing) = (IpAddr::from([127, 0, 0, 1]), CancellationToken::new());
        assert_eq!(
            announced_client(&mut stream, own, Duration::from_secs(10), &closing).await,
            None
        );
        closing.cancel();
        assert_eq!(announced_client(&mut stream, own, Duration::MAX, &closing).await, None);
        let mut local = &b"PROXY UNKNOWN\r\n"[..];
        assert_eq!(
            announced_client(&mut local, own, Duration::MAX, &CancellationToken::new()).await,
            Some(own)
        );
    }
}

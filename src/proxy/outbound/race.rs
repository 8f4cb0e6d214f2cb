//! Connects to a name that has several addresses. Several attempts run at once, so that an address
//! that does not respond does not use up the time for the others (RFC 8305).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How long to wait for a result before the next attempt begins (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// The maximum of simultaneous attempts. Each needs a file descriptor.
const ATTEMPTS_MAX: usize = 8;

/// Connects to the first address of a host that responds, and aborts the other attempts.
///
/// # Errors
/// The name has no address, or all attempts failed. In the second case the error is the last one.
pub(in crate::proxy) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    race(interleaved(lookup_host((host, port)).await?)).await
}

/// Sorts addresses so that the address families alternate (RFC 8305, section 4). The system has
/// sorted the addresses by preference, so the first address stays first.
fn interleaved(addresses: impl Iterator<Item = SocketAddr>) -> Vec<SocketAddr> {
    let mut addresses = addresses.peekable();
    let first = addresses.peek().is_some_and(SocketAddr::is_ipv6);
    let (preferred, others): (Vec<_>, Vec<_>) =
        addresses.partition(|address| address.is_ipv6() == first);
    let (mut preferred, mut others) = (preferred.into_iter(), others.into_iter());
    let mut all = Vec::new();
    loop {
        let (one, other) = (preferred.next(), others.next());
        if one.is_none() && other.is_none() {
            return all;
        }
        all.extend(one.into_iter().chain(other));
    }
}

async fn race(addresses: Vec<SocketAddr>) -> io::Result<TcpStream> {
    let mut addresses = addresses.into_iter();
    // Dropping the set aborts the active attempts.
    let mut attempts = JoinSet::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        if attempts.len() < ATTEMPTS_MAX
            && let Some(address) = addresses.next()
        {
            attempts.spawn(TcpStream::connect(address));
        }
        let may_start_another = attempts.len() < ATTEMPTS_MAX && addresses.len() > 0;
        tokio::select! {
            biased;
            ended = attempts.join_next() => match ended {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => last = error,
                Some(Err(error)) => last = error.into(),
                None => return Err(last),
            },
            () = sleep(ATTEMPT_DELAY), if may_start_another => {}
        }
    }
}

#[cfg(test)]
mod tests {
    //! Addresses that do not respond, and addresses that refuse connections.

    #![allow(clippy::unwrap_used)]

    use std::net::TcpListener;

    use socket2::{Domain, Socket, Type};
    use tokio::time::{Instant, timeout};

    use super::*;

    /// The longest time that a test waits. It is shorter than the system's own timeout for
    /// addresses that do not respond.
    const SOON: Duration = Duration::from_secs(20);

    /// An address that does not respond: its queue is full, so that it ignores further connections.
    struct SilentAddress {
        address: SocketAddr,
        _socket: Socket,
        _queued: Vec<std::net::TcpStream>,
    }

    impl SilentAddress {
        fn new() -> SilentAddress {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            socket.listen(0).unwrap();
            let address = socket.local_addr().unwrap().as_socket().unwrap();
            let connect =
                || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
            let queued = std::iter::from_fn(connect).collect();
            SilentAddress { address, _socket: socket, _queued: queued }
        }
    }

    fn refusing() -> SocketAddr {
        TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    fn listening() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    #[test]
    fn address_families_alternate_and_the_first_begins() {
        let of = |texts: &[&str]| {
            texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>()
        };
        for (given, expected) in [
            (
                &["[::1]:1", "[::2]:1", "[::3]:1", "1.1.1.1:1"][..],
                &["[::1]:1", "1.1.1.1:1", "[::2]:1", "[::3]:1"][..],
            ),
            (&["1.1.1.1:1", "1.1.1.2:1", "[::1]:1"], &["1.1.1.1:1", "[::1]:1", "1.1.1.2:1"]),
            (&["1.1.1.1:1"], &["1.1.1.1:1"]),
            (&[], &[]),
        ] {
            assert_eq!(interleaved(of(given).into_iter()), of(expected));
        }
    }

    #[tokio::test]
    async fn silent_addresses_do_not_delay_the_others_and_one_connection_is_made() {
        let (silent, (listener, good)) = (SilentAddress::new(), listening());
        let addresses = vec![silent.address, silent.address, good];
        let began = Instant::now();
        let stream = timeout(SOON, race(addresses)).await.unwrap().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(began.elapsed() >= 2 * ATTEMPT_DELAY, "each attempt runs alone for a while");
        listener.accept().unwrap();
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "no other connection is made");
    }

    #[tokio::test]
    async fn after_a_refusal_the_next_address_is_tried_at_once() {
        let (listener, good) = listening();
        let many: Vec<SocketAddr> =
            std::iter::repeat_with(refusing).take(3 * ATTEMPTS_MAX).chain([good]).collect();
        let began = Instant::now();
        assert_eq!(timeout(SOON, race(many)).await.unwrap().unwrap().peer_addr().unwrap(), good);
        assert!(began.elapsed() < ATTEMPTS_MAX as u32 * ATTEMPT_DELAY);
        drop(listener);
        assert_eq!(
            race(vec![refusing(), refusing()]).await.unwrap_err().kind(),
            io::ErrorKind::ConnectionRefused
        );
        assert_eq!(race(vec![]).await.unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    #[tokio::test]
    async fn no_more_attempts_run_at_once_than_allowed() {
        let (silent, (_listener, good)) = (SilentAddress::new(), listening());
        let addresses = std::iter::repeat_n(silent.address, ATTEMPTS_MAX).chain([good]).collect();
        assert!(timeout((ATTEMPTS_MAX as u32 + 2) * ATTEMPT_DELAY, race(addresses)).await.is_err());
    }
}

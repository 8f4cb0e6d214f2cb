//! Connecting to a name that has several addresses: attempts side by side, so that an address from which nothing comes does not
//! use up the time for the others (RFC 8305).

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::net::{TcpStream, lookup_host};
use tokio::task::JoinSet;
use tokio::time::sleep;

/// How long an attempt goes on by itself before the next address is tried beside it (RFC 8305, section 5).
const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Attempts side by side, at most: each takes a file descriptor.
const ATTEMPTS_MAX: usize = 8;

/// Connects to the first address of a host that answers. The other attempts are given up: one connection comes out.
///
/// # Errors
/// The name has no address, or no address can be connected to: the last error.
pub(in crate::proxy) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    race(interleaved(lookup_host((host, port)).await?)).await
}

/// The addresses, the families by turns (RFC 8305, section 4). The system has sorted them: the family of the first begins.
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
    // Dropped, it ends the attempts that are under way.
    let mut attempts = JoinSet::new();
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the name has no address");
    loop {
        if attempts.len() < ATTEMPTS_MAX
            && let Some(address) = addresses.next()
        {
            attempts.spawn(TcpStream::connect(address));
        }
        let waits = attempts.len() < ATTEMPTS_MAX && addresses.len() > 0;
        tokio::select! {
            biased;
            ended = attempts.join_next() => match ended {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => last = error,
                Some(Err(error)) => last = error.into(),
                None => return Err(last),
            },
            () = sleep(ATTEMPT_DELAY), if waits => {}
        }
    }
}

#[cfg(test)]
mod tests {
    //! Addresses that are silent, and addresses that refuse.

    #![allow(clippy::unwrap_used)]

    use std::net::TcpListener;

    use socket2::{Domain, Socket, Type};
    use tokio::time::{Instant, timeout};

    use super::*;

    /// Longest that a test waits for what should happen soon; less than the system's own patience with silent addresses.
    const SOON: Duration = Duration::from_secs(20);

    /// An address from which nothing comes: its queue is full, so that further connections are not answered.
    struct Silent {
        address: SocketAddr,
        _socket: Socket,
        _queued: Vec<std::net::TcpStream>,
    }

    impl Silent {
        fn new() -> Silent {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
            socket.listen(0).unwrap();
            let address = socket.local_addr().unwrap().as_socket().unwrap();
            let connect =
                || std::net::TcpStream::connect_timeout(&address, Duration::from_millis(200)).ok();
            let queued = std::iter::from_fn(connect).collect();
            Silent { address, _socket: socket, _queued: queued }
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
    fn families_take_turns_and_the_first_begins() {
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
    async fn silent_addresses_hold_nobody_up_and_one_connection_comes_out() {
        let (silent, (listener, good)) = (Silent::new(), listening());
        let addresses = vec![silent.address, silent.address, good];
        let began = Instant::now();
        let stream = timeout(SOON, race(addresses)).await.unwrap().unwrap();
        assert_eq!(stream.peer_addr().unwrap(), good);
        assert!(began.elapsed() >= 2 * ATTEMPT_DELAY, "each attempt has its time");
        listener.accept().unwrap();
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "no other connection was made");
    }

    #[tokio::test]
    async fn an_address_that_refuses_gives_its_turn_to_the_next_at_once() {
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
    async fn no_more_attempts_than_allowed_are_under_way() {
        let (silent, (_listener, good)) = (Silent::new(), listening());
        let addresses = std::iter::repeat_n(silent.address, ATTEMPTS_MAX).chain([good]).collect();
        assert!(timeout((ATTEMPTS_MAX as u32 + 2) * ATTEMPT_DELAY, race(addresses)).await.is_err());
    }
}

//! What is told to the service manager that started the process (systemd, `Type=notify`): that it serves, that it lives, that
//! it stops. The words are those of sd_notify(3).
//!
//! Danger: nobody may have to be there to listen. So nothing waits for the socket, and what can't be told is only logged.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::clock::monotonic_us;

/// Shortest time between signs of life, whatever is asked for: more only costs.
const SIGN_MIN: Duration = Duration::from_millis(10);

/// Whom to tell, if anybody.
pub(super) struct Supervisor {
    listener: Option<(UnixDatagram, SocketAddr)>,
}

impl Supervisor {
    /// Who is named in `NOTIFY_SOCKET`: a path, or an abstract name behind an `@`.
    pub fn new(named: Option<OsString>) -> Supervisor {
        let listener = named.filter(|name| !name.is_empty()).and_then(|name| {
            let found = find(&name);
            found
                .inspect_err(|error| tracing::warn!(%error, "NOTIFY_SOCKET can't be used: the service manager is told nothing"))
                .ok()
        });
        Supervisor { listener }
    }

    /// Listening, and nothing is claimed yet.
    pub fn waiting(&self) {
        self.tell("STATUS=listening, and waiting for the store to say what it keeps");
    }

    /// Requests are served.
    pub fn ready(&self) {
        self.tell("READY=1\nSTATUS=serving");
    }

    /// The event log is followed.
    pub fn following(&self) {
        self.tell("READY=1\nSTATUS=following the event log");
    }

    /// The configuration is read again. The time is what systemd tells one reload from another by.
    pub fn reloading(&self) {
        self.tell(&format!(
            "RELOADING=1\nMONOTONIC_USEC={}\nSTATUS=reading the configuration again",
            monotonic_us()
        ));
    }

    /// The end has begun.
    pub fn stopping(&self) {
        self.tell("STOPPING=1\nSTATUS=no new connections, waiting for what is under way");
    }

    /// Gives signs of life from now on, twice as often as is asked for in `WATCHDOG_USEC`, if it is asked of this process
    /// (`WATCHDOG_PID`). They come from the runtime that serves requests: a runtime that hangs gives none.
    pub fn watched(
        &self,
        every_us: Option<OsString>,
        process: Option<OsString>,
    ) -> Option<AbortOnDropHandle<()>> {
        let number = |text: OsString| text.to_str().and_then(|text| text.parse::<u64>().ok());
        let mine =
            process.is_none_or(|process| number(process) == Some(u64::from(std::process::id())));
        let every =
            every_us.and_then(number).filter(|us| *us > 0 && mine).map(Duration::from_micros)?;
        let (socket, address) = self.listener.as_ref()?;
        let told = Supervisor { listener: Some((socket.try_clone().ok()?, address.clone())) };
        let mut signs = interval((every / 2).max(SIGN_MIN));
        signs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Some(AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                signs.tick().await;
                told.tell("WATCHDOG=1");
            }
        })))
    }

    fn tell(&self, words: &str) {
        let Some((socket, address)) = &self.listener else { return };
        if let Err(error) = socket.send_to_addr(words.as_bytes(), address) {
            tracing::warn!(%error, "the service manager could not be told: {}", words.lines().next().unwrap_or_default());
        }
    }
}

fn find(name: &OsString) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    Ok((socket, address))
}

//! Notifications to the service manager that started the process (systemd, `Type=notify`): ready,
//! alive, stopping. The manual page sd_notify(3) describes the messages.
//!
//! Danger: if the socket has no reader, a send could block forever. So no send waits, and a failed
//! send is only logged.

use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tokio_util::task::AbortOnDropHandle;

use crate::clock::monotonic_us;

/// The shortest period of watchdog messages, even if a shorter one is configured.
const WATCHDOG_MIN: Duration = Duration::from_millis(10);

/// The socket of the service manager, if there is one.
pub(super) struct Supervisor {
    socket: Option<(UnixDatagram, SocketAddr)>,
}

impl Supervisor {
    /// Uses the socket that `NOTIFY_SOCKET` names: a path, or an abstract name after an `@`.
    pub fn new(named: Option<OsString>) -> Supervisor {
        let socket = named.filter(|name| !name.is_empty()).and_then(|name| {
            let found = find(&name);
            found
                .inspect_err(|error| {
                    tracing::warn!(
                        %error,
                        "NOTIFY_SOCKET can't be used: the service manager gets no notifications"
                    );
                })
                .ok()
        });
        Supervisor { socket }
    }

    /// Reports that the gateway listens, but can't claim operations yet.
    pub fn waiting(&self) {
        self.notify("STATUS=listening, and waiting for the store's identities");
    }

    /// Reports that requests are served.
    pub fn ready(&self) {
        self.notify("READY=1\nSTATUS=serving");
    }

    /// Reports that this process follows the event log.
    pub fn following(&self) {
        self.notify("READY=1\nSTATUS=following the event log");
    }

    /// Reports a reload, with the time, by which systemd distinguishes reloads.
    pub fn reloading(&self) {
        self.notify(&format!(
            "RELOADING=1\nMONOTONIC_USEC={}\nSTATUS=reading the configuration again",
            monotonic_us()
        ));
    }

    /// Reports that the process is stopping.
    pub fn stopping(&self) {
        self.notify("STOPPING=1\nSTATUS=no new connections, waiting for active requests");
    }

    /// Sends watchdog messages from now on, twice per period of `WATCHDOG_USEC`, if `WATCHDOG_PID`
    /// is this process. The runtime that serves requests sends them, so a runtime that hangs sends
    /// no message.
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
        let (socket, address) = self.socket.as_ref()?;
        let watched = Supervisor { socket: Some((socket.try_clone().ok()?, address.clone())) };
        let mut ticks = interval((every / 2).max(WATCHDOG_MIN));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        Some(AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                ticks.tick().await;
                watched.notify("WATCHDOG=1");
            }
        })))
    }

    fn notify(&self, message: &str) {
        let Some((socket, address)) = &self.socket else { return };
        if let Err(error) = socket.send_to_addr(message.as_bytes(), address) {
            let notification = message.lines().next().unwrap_or_default();
            tracing::warn!(%error, notification, "notification of the service manager failed");
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

//! Notifications to a service manager, through a test socket in the place of systemd's.

use std::io::ErrorKind;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::harness::{Gateway, RedisServer, Request, Upstream, free_port, until};

/// A service manager that listens on a socket.
struct Manager(UnixDatagram);

impl Manager {
    fn at(path: &Path) -> Manager {
        Manager::on(UnixDatagram::bind(path).unwrap())
    }

    fn on(socket: UnixDatagram) -> Manager {
        socket.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        Manager(socket)
    }

    /// Returns the next notification, if one has arrived.
    fn received(&self) -> Option<String> {
        let mut buffer = [0; 1024];
        match self.0.recv(&mut buffer) {
            Ok(length) => Some(String::from_utf8(buffer[..length].to_vec()).unwrap()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits for this line, and returns all earlier notifications.
    #[track_caller]
    fn waits_for(&self, word: &str) -> Vec<String> {
        let mut before = Vec::new();
        until(word, || match self.received() {
            Some(text) if text.lines().any(|line| line == word) => true,
            other => {
                before.extend(other);
                false
            }
        });
        before
    }
}

fn launch(upstream: &Upstream, store: &str, adjust: impl FnOnce(&mut Command)) -> Gateway {
    Gateway::launch(
        &format!("http://127.0.0.1:{}", upstream.port),
        store,
        "",
        crate::harness::ROUTES,
        adjust,
    )
}

#[test]
fn it_is_notified_when_requests_are_served_and_when_the_end_begins() {
    let upstream = Upstream::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = Manager::at(&path);
    let mut gateway = launch(&upstream, "memory:", |command| {
        command.env("NOTIFY_SOCKET", &path).env_remove("WATCHDOG_USEC");
    });
    manager.waits_for("READY=1");
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201, "no waiting: it is ready");

    gateway.signal("HUP");
    until("the reload to be notified", || {
        manager.received().is_some_and(|text| text.starts_with("RELOADING=1\nMONOTONIC_USEC="))
    });
    manager.waits_for("READY=1");

    let running = Request::pay("held", "{}").act("hold").send_aside(gateway.port);
    upstream.reached(2);
    gateway.signal("TERM");
    manager.waits_for("STOPPING=1");
    assert!(gateway.has_ended().is_none(), "what is under way is waited for");
    upstream.release();
    assert_eq!(running.join().unwrap().status, 201);
    assert!(gateway.wait().success());
    assert_eq!(manager.received(), None, "nobody asked for signs of life");
}

#[test]
fn a_gateway_is_not_reported_ready_before_its_store_has_agreed() {
    let upstream = Upstream::start();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("notify");
    let manager = Manager::at(&path);
    let port = free_port();
    let gateway = launch(&upstream, &format!("redis://127.0.0.1:{port}"), |command| {
        command.env("NOTIFY_SOCKET", &path);
    });
    until("the gateway to listen", || gateway.logs().contains("serving"));
    until("a word", || manager.received().is_some_and(|text| text.starts_with("STATUS=")));
    assert_eq!(manager.received(), None);
    let _redis = RedisServer::with(port, &[]);
    manager.waits_for("READY=1");
    assert!(gateway.is_ready());
}

#[test]
fn it_sees_signs_of_life_only_while_there_is_life() {
    let upstream = Upstream::start();
    let name = format!("onceward-{}", std::process::id());
    let socket = UnixDatagram::bind_addr(&SocketAddr::from_abstract_name(&name).unwrap()).unwrap();
    let manager = Manager::on(socket);
    let gateway = launch(&upstream, "memory:", |command| {
        command.env("NOTIFY_SOCKET", format!("@{name}")).env("WATCHDOG_USEC", "100000");
    });
    manager.waits_for("READY=1");
    manager.waits_for("WATCHDOG=1");
    gateway.signal("STOP");
    until("silence", || manager.received().is_none());
    gateway.signal("CONT");
    manager.waits_for("WATCHDOG=1");
}

#[test]
fn a_manager_that_is_not_there_keeps_nobody_from_serving() {
    let upstream = Upstream::start();
    let gateway = launch(&upstream, "memory:", |command| {
        // Watchdog notifications are requested for another process.
        command
            .env("NOTIFY_SOCKET", "/nowhere/at/all")
            .env("WATCHDOG_USEC", "100000")
            .env("WATCHDOG_PID", "1");
    });
    until("the gateway to be ready", || gateway.is_ready());
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
    until("the reason", || {
        gateway.logs().lines().any(|line| {
            line.contains("notification of the service manager failed") && line.contains("READY=1")
        })
    });
    assert!(!gateway.logs().contains("WATCHDOG"), "{}", gateway.logs());
}

#[test]
fn user_signals_are_ignored() {
    let upstream = Upstream::start();
    let mut gateway = Gateway::start(upstream.port);
    for signal in ["USR1", "USR2"] {
        gateway.signal(signal);
    }
    assert_eq!(Request::pay("k", "{}").send(gateway.port).status, 201);
    assert!(gateway.has_ended().is_none());
    gateway.signal("TERM");
    assert!(gateway.wait().success());
}

//! An nginx process as origin. It answers 201 to everything and logs each request that it parsed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use super::{Request, free_port, until};

/// The path where distributions install nginx; it is not on every user's `PATH`.
const PROGRAM: &str = "/usr/sbin/nginx";

/// A running nginx; killed when dropped.
pub struct Nginx {
    pub port: u16,
    child: Child,
    log: PathBuf,
    _dir: tempfile::TempDir,
}

impl Nginx {
    pub fn start() -> Nginx {
        let (port, dir) = (free_port(), tempfile::tempdir().unwrap());
        let (config, log) = (dir.path().join("nginx.conf"), dir.path().join("access.log"));
        std::fs::write(&config, configuration(port, dir.path())).unwrap();
        let program = if Path::new(PROGRAM).exists() { PROGRAM } else { "nginx" };
        let child = Command::new(program)
            .arg("-p")
            .arg(dir.path())
            .arg("-c")
            .arg(&config)
            .stdout(Stdio::null())
            .spawn()
            .expect("nginx is not installed: apt-get install nginx");
        let nginx = Nginx { port, child, log, _dir: dir };
        until("nginx to answer", || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok());
        assert_eq!(Request::new("GET", "/ready").send(port).status, 201);
        nginx
    }

    /// Returns the requests that nginx parsed: their `traceparent` (`-` without one) and request
    /// line.
    pub fn seen(&self) -> Vec<(String, String)> {
        let text = std::fs::read_to_string(&self.log).unwrap();
        text.lines()
            .filter_map(|line| line.split_once(' '))
            .map(|(trace, line)| (trace.to_owned(), line.to_owned()))
            .collect()
    }
}

/// Configuration for a single process, which needs no rights and writes nothing outside its
/// directory.
fn configuration(port: u16, dir: &Path) -> String {
    let dir = dir.display();
    let mut paths = String::new();
    for name in ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"] {
        paths.push_str(&format!("{name}_temp_path {dir}/{name};\n"));
    }
    format!(
        "daemon off; master_process off; pid {dir}/nginx.pid; error_log stderr crit;
        events {{ }}
        http {{
            {paths}
            log_format seen '$http_traceparent $request';
            access_log {dir}/access.log seen;
            keepalive_requests 100000;
            server {{
                listen 127.0.0.1:{port};
                location / {{ return 201 '{{}}'; }}
            }}
        }}"
    )
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

//! The kubelet's probes by HTTP (k8s.io/kubernetes: pkg/kubelet/prober, pkg/probe/http).

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use super::Namespace;

/// A probe of a container, with its address as `host:port`.
pub struct Probe {
    pub address: String,
    pub path: String,
    pub period: Duration,
    pub timeout: Duration,
    pub failure_threshold: u32,
}

impl Probe {
    /// The longest time from the moment in which a process hangs, right after it answered a probe, until the
    /// probe has failed. A probe starts with each period if none takes longer than that.
    pub fn longest_failure(&self) -> Duration {
        assert!(self.timeout <= self.period, "probes do not overlap");
        self.period * self.failure_threshold + self.timeout
    }

    /// The shortest time without any answer until the probe has failed.
    pub fn shortest_failure(&self) -> Duration {
        self.period * (self.failure_threshold - 1) + self.timeout
    }

    /// Probes once: whether the whole response, a successful one, comes within the time-out.
    pub fn succeeds(&self, node: &Namespace) -> bool {
        let deadline = Instant::now() + self.timeout;
        let response = node.enter(|| self.response(deadline));
        response.is_ok_and(|it| it.starts_with("HTTP/1.1 2") || it.starts_with("HTTP/1.1 3"))
    }

    fn response(&self, deadline: Instant) -> std::io::Result<String> {
        let address = self.address.parse().unwrap();
        let mut stream = TcpStream::connect_timeout(&address, self.timeout)?;
        let (path, host) = (&self.path, &self.address);
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes())?;
        let mut response = Vec::new();
        let mut piece = [0; 4096];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Zero would be no time-out at all.
            stream.set_read_timeout(Some(left.max(Duration::from_nanos(1000))))?;
            match stream.read(&mut piece) {
                Ok(0) => return Ok(String::from_utf8_lossy(&response).into_owned()),
                Ok(length) => response.extend_from_slice(&piece[..length]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// Probes in each period, the first time after one, until as many probes as the threshold have failed one
    /// after another. Then the kubelet sends the container SIGTERM.
    pub fn wait_until_failed(&self, node: &Namespace) {
        let mut next = Instant::now();
        let mut failures = 0;
        while failures < self.failure_threshold {
            next += self.period;
            thread::sleep(next.saturating_duration_since(Instant::now()));
            failures = if self.succeeds(node) { 0 } else { failures + 1 };
        }
    }
}

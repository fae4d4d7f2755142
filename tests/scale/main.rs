//! Much of everything at once: connections, blocks and ports, devices that come and go. Each test prints what it
//! took; docs/performance.md has the command and the figures of `FULL=1`. A crate of its own: its load would delay
//! other tests.

#[path = "../lab/mod.rs"]
mod lab;

mod connections;
mod devices;
mod lists;

use std::time::{Duration, Instant};

use lab::Daemon;

/// `full` if the environment has `FULL`, which takes root and a quiet machine; else `small`.
fn size<T>(small: T, full: T) -> T {
    match std::env::var_os("FULL") {
        Some(_) => full,
        None => small,
    }
}

/// Time that some code takes.
fn timed(code: impl FnOnce()) -> Duration {
    let start = Instant::now();
    code();
    start.elapsed()
}

fn median<T: PartialOrd>(mut values: Vec<T>) -> T {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap());
    values.swap_remove(values.len() / 2)
}

/// CPU time of the guard.
fn cpu(daemon: &Daemon) -> Duration {
    let path = format!("/proc/{}/schedstat", daemon.guard());
    let text = std::fs::read_to_string(path).unwrap();
    Duration::from_nanos(text.split(' ').next().unwrap().parse().unwrap())
}

/// CPU time that some code costs the guard, which has nothing more to do in the end.
fn guard_cpu(daemon: &Daemon, code: impl FnOnce()) -> Duration {
    let before = cpu(daemon);
    code();
    let mut last = before;
    lab::wait_until("the guard sleeps", || {
        std::thread::sleep(Duration::from_millis(300));
        let earlier = std::mem::replace(&mut last, cpu(daemon));
        last - earlier < Duration::from_millis(1)
    });
    last - before
}

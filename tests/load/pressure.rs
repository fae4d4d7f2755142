//! Beside crowds of clients that misbehave, others are served at once, with the default limit of connections.
//!
//! No test here asserts a speed. Its bounds are counts of clients that were served in their time, which is many
//! times longer than they wait on a machine that is not busy; and a machine that is busy gets several attempts.
//! `--nocapture` prints how long they waited.

use std::io::{self, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::busy::{Busy, Progress, read_response};
use crate::crowds::{Behaviour, Crowd, DPORTS, run_clients};
use crate::lab::http_client::{HttpClient, REQUEST};
use crate::lab::{Daemon, Lab, PATIENCE, POD, wait_until};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tproxy_pod::server::deadlines::DEADLINES;

/// The test whose code the processes of crowds run.
const CROWD_TEST: &str = "pressure::beside_2_000_silent_clients_others_are_served_at_once";

/// Other clients: their number, and the interval at which they come.
const OTHERS: u32 = 60;
const INTERVAL: Duration = Duration::from_millis(75);

/// Time in which half of the other clients are served. They take 0.1 s at most; when each waited for one
/// eviction in 10 ms, half of them took 5 to 26 s.
const SOON: Duration = Duration::from_secs(1);

/// Time in which every other client is served.
const LATE: Duration = Duration::from_secs(5);

/// Clients that make progress meanwhile.
const BUSY: [fn() -> Busy; 3] = [Busy::requests, Busy::head_in_pieces, Busy::upload];

/// A busy client that sends nothing for this long beyond its pause, because it does not run, may be taken for an
/// idle one: on its first request, where 1,000 clients wait.
const PAUSE: Duration = Duration::from_millis(15);

/// A request that ends its connection.
pub const LAST_REQUEST: &[u8] = b"GET /other HTTP/1.1\r\nHost: pod\r\nConnection: close\r\n\r\n";

/// Number of attempts on a busy machine.
const ATTEMPTS: usize = 3;

/// An address without a Pod, which the client reaches from [`OTHER_CLIENT`].
pub const ABSENT: &str = "10.244.77.77";
const OTHER_CLIENT: &str = "192.0.2.3";

/// Runs a test while no other test of this file runs.
fn alone<T>(test: impl FnOnce() -> T) -> T {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    test()
}

/// Asserts that one of several attempts succeeds.
fn assert_once(claim: &str, mut attempt: impl FnMut() -> bool) {
    let is_shown = alone(|| (0..ATTEMPTS).any(|_| attempt()));
    assert!(is_shown, "in none of {ATTEMPTS} attempts: {claim}");
}

/// Sets a flag when it is dropped, also by a panic.
struct SetAtEnd<'f>(&'f AtomicBool);

impl Drop for SetAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Time from the start of a client's connect to the end of its response, if it is not longer than [`LATE`].
fn wait_once() -> io::Result<Duration> {
    let start = Instant::now();
    let left = || match LATE.checked_sub(start.elapsed()) {
        None | Some(Duration::ZERO) => Err(io::Error::from(ErrorKind::TimedOut)),
        Some(left) => Ok(left),
    };
    let address: SocketAddr = POD.parse().unwrap();
    let mut stream = TcpStream::connect_timeout(&address, left()?)?;
    stream.set_nodelay(true)?;
    stream.write_all(LAST_REQUEST)?;
    let (mut response, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        stream.set_read_timeout(Some(left()?))?;
        match stream.read(&mut piece)? {
            0 if response.starts_with(b"HTTP/1.1 200 OK\r\n") => return Ok(start.elapsed()),
            0 => return Err(ErrorKind::UnexpectedEof.into()),
            length => response.extend_from_slice(&piece[..length]),
        }
    }
}

/// How long clients wait that come one after the other, from the shortest to the longest; those that were not
/// served come last. Asserts that none is reset.
fn waits() -> Vec<Result<Duration, ErrorKind>> {
    let mut waits: Vec<_> = thread::scope(|scope| {
        let start = Instant::now();
        let come = |number| {
            thread::sleep((start + INTERVAL * number).saturating_duration_since(Instant::now()));
            scope.spawn(wait_once)
        };
        let clients: Vec<_> = (0..OTHERS).map(come).collect();
        let waits = clients.into_iter().map(|client| client.join().unwrap());
        waits
            .map(|wait| wait.map_err(|error| error.kind()))
            .collect()
    });
    waits.sort();
    for error in [ErrorKind::ConnectionRefused, ErrorKind::ConnectionReset] {
        assert!(!waits.contains(&Err(error)), "{waits:?}");
    }
    waits
}

/// Clients that make progress, twice each. Where thousands wait for those that have yet to finish their first
/// request, a client that sends its first head in pieces is one of them.
fn busy_beside(kind: Behaviour) -> Vec<Busy> {
    let mut busy = BUSY.to_vec();
    if !matches!(kind, Behaviour::DrippingBody) {
        busy.push(Busy::first_head_in_pieces);
    }
    busy.repeat(2).into_iter().map(|client| client()).collect()
}

/// Whether clients are served in their time beside a crowd; asserts that clients that make progress are not cut,
/// and that no other client is reset.
fn are_served_beside(kind: Behaviour, count: usize) -> bool {
    let lab = Lab::new();
    let daemon = lab.start(&DPORTS);
    let is_over = &AtomicBool::new(false);
    let (waits, progress) = lab.client.enter(|| {
        thread::scope(|scope| {
            let ends = SetAtEnd(is_over);
            let busy = busy_beside(kind).into_iter();
            let busy: Vec<_> = busy
                .map(|client| scope.spawn(move || client.run(is_over)))
                .collect();
            let crowd = Crowd::start(&lab, CROWD_TEST, kind, count, "10.244.0.5");
            daemon.wait_for("connections is reached");
            let waits = waits();
            let events = crowd.stop();
            let cookies = lab.node.counter("SyncookiesRecv");
            println!("beside {count} {kind:?}: {events:?}, {cookies} by cookie");
            assert_eq!(events.reset, 0, "{events:?}");
            let timed_out = if kind.drips() { events.closed } else { 0 };
            assert_eq!(events.timed_out, timed_out, "{events:?}");
            drop(ends);
            let progress = busy.into_iter().map(|client| client.join().unwrap());
            (waits, progress.collect::<Vec<_>>())
        })
    });
    let served = |within: Duration| waits.iter().filter(|it| **it <= Ok(within)).count();
    println!(
        "{:?} median, {:?} longest; {} of {OTHERS} served within {SOON:?}, {} within {LATE:?}",
        waits[waits.len() / 2],
        waits[waits.len() - 1],
        served(SOON),
        served(LATE),
    );
    let in_time = served(SOON) >= waits.len() / 2 && served(LATE) == waits.len();
    are_not_cut(&progress) && in_time
}

/// Returns whether it is shown: clients that did not run for a time may be cut.
fn are_not_cut(progress: &[Progress]) -> bool {
    for Progress {
        name,
        responses,
        silent,
        cut,
    } in progress
    {
        let seen = format!("{name}: {responses} responses, silent for {silent:?}, {cut:?}");
        println!("{seen}");
        assert!(
            cut.is_none() || *silent >= PAUSE,
            "a client that makes progress is cut: {seen}"
        );
        assert!(cut.is_some() || *responses > 0, "{seen}");
    }
    progress.iter().all(|client| client.cut.is_none())
}

fn assert_served_beside(kind: Behaviour, count: usize) {
    assert_once("clients are served in their time", || {
        are_served_beside(kind, count)
    });
}

#[test]
fn beside_2_000_silent_clients_others_are_served_at_once() {
    if !run_clients() {
        assert_served_beside(Behaviour::Silent, 2000);
    }
}

#[test]
fn beside_5_000_silent_clients_others_are_served_at_once() {
    assert_served_beside(Behaviour::Silent, 5000);
}

#[test]
fn beside_2_000_clients_that_are_idle_after_one_response_others_are_served_at_once() {
    assert_served_beside(Behaviour::Idle, 2000);
}

#[test]
fn beside_2_000_clients_that_ask_for_delayed_responses_others_are_served_at_once() {
    assert_served_beside(Behaviour::Delayed, 2000);
}

#[test]
fn beside_2_000_clients_whose_heads_drip_others_are_served_at_once() {
    assert_served_beside(Behaviour::DrippingHead, 2000);
}

#[test]
fn beside_5_000_clients_whose_bodies_drip_others_are_served_at_once() {
    assert_served_beside(Behaviour::DrippingBody, 5000);
}

/// Opens connections that serve a request, and then are idle.
fn idle_connections(lab: &Lab, daemon: &Daemon, count: usize) -> Vec<HttpClient> {
    let connections = lab.open_connections(POD, count);
    wait_until("all are idle", || daemon.idle_connections() == count);
    connections
}

/// Number of connections that are still open: each serves another request.
fn count_open(connections: Vec<HttpClient>) -> usize {
    let is_open = |mut connection: HttpClient| {
        let stream = connection.0.get_mut();
        stream.write_all(REQUEST.as_bytes()).is_ok() && read_response(&mut connection.0).is_ok()
    };
    connections
        .into_iter()
        .map(is_open)
        .filter(|open| *open)
        .count()
}

/// Gives the client a second address, from which it reaches [`ABSENT`].
pub fn add_other_client(lab: &Lab) {
    lab.client.ip(&format!(
        "address add {OTHER_CLIENT}/24 dev eth0
         route add {ABSENT}/32 via 192.0.2.1 src {OTHER_CLIENT}"
    ));
}

/// Number of 200 idle connections that are open after some seconds beside a crowd; `None` if their own time may
/// have been over.
fn count_open_beside(kind: Behaviour, host: &str) -> Option<usize> {
    let lab = Lab::new();
    add_other_client(&lab);
    let daemon = lab.start(&DPORTS);
    let start = Instant::now();
    let idle = idle_connections(&lab, &daemon, 200);
    let crowd = Crowd::start(&lab, CROWD_TEST, kind, 2000, host);
    daemon.wait_for("connections is reached");
    let waits = lab.client.enter(waits);
    let open = count_open(idle);
    let events = crowd.stop();
    println!("beside 2000 {kind:?} of {host}: {events:?}");
    assert_eq!(events.reset, 0, "{events:?}");
    println!(
        "{open} of 200 idle connections are open; others waited {:?}",
        waits[waits.len() / 2]
    );
    (start.elapsed() < DEADLINES.keep_alive).then_some(open)
}

#[test]
fn connections_that_served_outlast_silent_ones() {
    assert_once("the machine was not too busy", || {
        let open = count_open_beside(Behaviour::Silent, "10.244.0.5");
        assert!(
            open.is_none_or(|open| open == 200),
            "{open:?} of 200 are open"
        );
        open.is_some()
    });
}

#[test]
fn idle_connections_of_one_address_outlast_a_crowd_of_another() {
    assert_once("the machine was not too busy", || {
        let open = count_open_beside(Behaviour::Idle, ABSENT);
        assert!(
            open.is_none_or(|open| open == 200),
            "{open:?} of 200 are open"
        );
        open.is_some()
    });
}

/// Clients that all connect first, and then all send a request. Returns whether they took less time than the
/// kernel keeps silent clients from the server for (`TCP_DEFER_ACCEPT`): later ones may be evicted.
fn serve_peak(lab: &Lab, count: usize) -> bool {
    let start = Instant::now();
    let mut clients: Vec<_> = lab.client.enter(|| {
        let clients = (0..count).map(|_| TcpStream::connect(POD).unwrap());
        clients.collect()
    });
    for client in &mut clients {
        client.write_all(LAST_REQUEST).unwrap();
    }
    if start.elapsed() >= Duration::from_secs(1) {
        return false;
    }
    for client in clients {
        client.set_read_timeout(Some(*PATIENCE)).unwrap();
        read_response(&mut BufReader::new(client)).unwrap();
    }
    true
}

#[test]
fn a_short_peak_closes_only_a_part_of_the_idle_connections() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
    assert_once("the peak was short", || {
        let lab = Lab::new();
        let daemon = lab.start(&[]);
        let idle = idle_connections(&lab, &daemon, 1000);
        let is_short = serve_peak(&lab, 2000);
        let open = count_open(idle);
        println!("{open} of 1000 idle connections are open after a peak of 2000 clients");
        assert!(!is_short || open >= 500, "{open} of 1000 are open");
        is_short
    });
}

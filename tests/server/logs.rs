//! Log lines are written in batches. What happens to them and to requests if the reader stalls or is gone, if
//! the disk is full, and at the end of the program.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, PipeReader, Read, Write, pipe};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Child, ExitStatus};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::lab::stopwatch::Stopwatch;
use crate::lab::{CIDRS, Lab, POD, PROGRAM, resident_memory, wait_until};
use nix::libc::O_NONBLOCK;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tproxy_pod::guard::LONGEST_STOP;
use tproxy_pod::log::queue::MAX_FLUSH;

const REQUEST: &str = "GET / HTTP/1.1\r\nHost: pod\r\n\r\n";

/// The longest time that a request waits for a log that is not read.
const STUCK: Duration = Duration::from_secs(1);

/// Clients that fill a log, and requests of each.
const CLIENTS: usize = 8;
const REQUESTS: usize = 400;

/// Number of answered requests in a log.
fn count_received(log: &str) -> usize {
    log.matches("INFO  Received request to ").count()
}

/// Number of lines that a log says are lost.
fn count_lost(log: &str) -> usize {
    let notices = log.lines().filter_map(|line| {
        let (_, rest) = line.split_once(" WARN  Lost ")?;
        let number = rest.strip_suffix(" log lines: they could not be written")?;
        Some(number.parse::<usize>().unwrap())
    });
    notices.sum()
}

/// A request with a line of more than 2,000 bytes.
fn long_request() -> String {
    let field = |name: &str| format!("{name}: {}\r\n", "x".repeat(500));
    let target = "t".repeat(500);
    let fields = [field("Host"), field("User-Agent")].concat();
    format!("GET /{target} HTTP/1.1\r\n{fields}\r\n")
}

/// Sends requests with long lines, more than may wait, from some clients at once. Each client is answered, and
/// waits for the log once. Returns the number of requests.
fn fill_log(lab: &Lab) -> usize {
    let request = long_request();
    let ask = || {
        let mut connection = lab.client.http(POD);
        let all = Stopwatch::start();
        for _ in 0..REQUESTS {
            let watch = Stopwatch::start();
            assert_eq!(connection.request(&request).status, "200 OK");
            watch.check_longest("an answer", watch.elapsed(), STUCK);
        }
        all.check_longest("all answers", all.elapsed(), 2 * STUCK);
    };
    thread::scope(|scope| (0..CLIENTS).for_each(|_| drop(scope.spawn(ask))));
    CLIENTS * REQUESTS
}

/// The program with a pipe as its log, which the test reads.
struct UnreadLog {
    child: Child,
    log: Option<BufReader<PipeReader>>,
}

impl UnreadLog {
    /// Starts the program, and reads until it captures.
    fn start(lab: &Lab) -> UnreadLog {
        let mut program = UnreadLog::spawn(lab, pipe().unwrap().0, 0);
        program.read_to("Created table");
        program
    }

    /// Starts the program, with flags for its end of the pipe.
    fn spawn(lab: &Lab, reader: PipeReader, flags: i32) -> UnreadLog {
        let mut command = lab.node.command(PROGRAM);
        command.args(["--cidr", CIDRS]);
        let child = command.stderr(pipe_of(&reader, flags)).spawn().unwrap();
        let log = Some(BufReader::new(reader));
        UnreadLog { child, log }
    }

    /// Reads up to a line with this text.
    fn read_to(&mut self, text: &str) -> String {
        let log = self.log.as_mut().unwrap();
        let (mut read, mut start) = (String::new(), 0);
        while !read[start..].contains(text) {
            start = read.len();
            assert!(log.read_line(&mut read).unwrap() > 0, "no line with {text}");
        }
        read
    }

    /// Reads a log that was full. Then the line of one more request has space, and is behind those that say what
    /// is lost.
    fn read_on(&mut self, lab: &Lab) -> String {
        let mut half = vec![0; 1 << 20];
        self.log.as_mut().unwrap().read_exact(&mut half).unwrap();
        assert_eq!(lab.client.http(POD).request(REQUEST).status, "200 OK");
        String::from_utf8(half).unwrap() + &self.read_to(" Received request to / ")
    }

    fn guard(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Reads the log to its end.
    fn read(&mut self) -> thread::JoinHandle<String> {
        let mut log = self.log.take().unwrap();
        thread::spawn(move || {
            let mut text = String::new();
            log.read_to_string(&mut text).unwrap();
            text
        })
    }

    /// Reads the log to its end, a page at a time, with a pause after each until `is_fast`.
    fn read_slowly(
        &mut self,
        pause: Duration,
        is_fast: &'static AtomicBool,
    ) -> thread::JoinHandle<String> {
        let log = self.log.take().unwrap();
        let mut text = log.buffer().to_vec();
        let mut pipe = log.into_inner();
        thread::spawn(move || {
            let mut page = [0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut page) {
                text.extend(&page[..length]);
                if !is_fast.load(Ordering::SeqCst) {
                    thread::sleep(pause);
                }
            }
            String::from_utf8(text).unwrap()
        })
    }

    /// Stops the program with SIGTERM, within the longest stop.
    fn stop(&mut self) -> ExitStatus {
        kill(self.guard(), Signal::SIGTERM).unwrap();
        let watch = Stopwatch::start();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            watch.check_longest("the stop", watch.elapsed(), LONGEST_STOP);
            thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for UnreadLog {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The write end of a pipe, opened again.
fn pipe_of(reader: &PipeReader, flags: i32) -> File {
    let path = format!("/proc/self/fd/{}", reader.as_raw_fd());
    let mut options = OpenOptions::new();
    options.write(true).custom_flags(flags).open(path).unwrap()
}

/// Fills a pipe, so that no line fits.
fn fill_pipe(reader: &PipeReader) {
    let mut pipe = pipe_of(reader, O_NONBLOCK);
    for length in [4096, 1] {
        while pipe.write(&vec![b'\n'; length]).is_ok() {}
    }
}

/// Asserts that removed rules and routes are restored.
fn assert_reconciles(lab: &Lab) {
    let before = lab.remains();
    for loss in [
        "ip rule del fwmark 0x1/0x1 lookup 100",
        "ip -6 rule del fwmark 0x1/0x1 lookup 100",
        "ip route flush table 100",
    ] {
        lab.node.run(loss);
        wait_until(loss, || lab.remains() == before);
    }
}

#[test]
fn while_the_log_is_not_read_requests_wait_a_second_at_most_and_lost_lines_are_counted() {
    // Also if another process has made the pipe non-blocking.
    for flags in [0, O_NONBLOCK] {
        let lab = Lab::new();
        let mut program = UnreadLog::spawn(&lab, pipe().unwrap().0, flags);
        program.read_to("Created table");
        let answered = fill_log(&lab);
        let healthy = lab.node.get("127.0.0.1:1", "/healthz");
        let server = crate::lab::server_of(program.guard());
        let full = resident_memory(server);
        let text = program.read_on(&lab);
        let read = resident_memory(server);
        let rest = program.read();
        assert!(program.stop().success());
        let text = text + &rest.join().unwrap();

        assert!(
            healthy.ends_with("ok\n"),
            "probes are not logged: {healthy}"
        );
        let lost = count_lost(&text);
        assert!(lost > 100, "{lost} lines are lost");
        assert_eq!(count_received(&text) + lost, answered + 1);
        // Of the 8 MiB in docs/http.md for all but the connections; the guard is smaller, and may queue as much.
        assert!(full < 4 << 20, "{full} bytes");
        assert!(read + (3 << 19) < full, "{read} of {full} bytes are kept");
    }
}

#[test]
fn while_the_log_is_not_read_a_start_captures_nothing() {
    let lab = Lab::new();
    lab.pod.serve(8180);
    let (reader, _writer) = pipe().unwrap();
    fill_pipe(&reader);
    let mut program = UnreadLog::spawn(&lab, reader, 0);
    wait_until("the table is claimed", || !lab.node.tables().is_empty());
    assert!(lab.client.get(POD, "/").ends_with("pod"));
    program.read_to("Created table");
    assert!(lab.client.get(POD, "/").contains("Request received"));
}

#[test]
fn while_the_log_is_not_read_no_server_outlives_a_stop() {
    let lab = Lab::new();
    let (reader, _writer) = pipe().unwrap();
    let first_lines = {
        let mut daemon = lab.start(&["--cidr", CIDRS]);
        daemon.stop();
        let log = daemon.log();
        log.split_inclusive('\n')
            .take(3)
            .map(str::len)
            .sum::<usize>()
    };
    // The guard's lines fit, but not the line that the server logs before it is ready.
    let mut padding = pipe_of(&reader, 0);
    for page in 1..=16 {
        let length = if page < 16 { 4096 } else { 4096 - first_lines };
        padding.write_all(&vec![b'\n'; length]).unwrap();
    }
    let mut command = lab.node.command("prlimit");
    command.args(["--nofile=64", PROGRAM, "--cidr", CIDRS]);
    let child = command.stderr(pipe_of(&reader, 0)).spawn().unwrap();
    let log = Some(BufReader::new(reader));
    let mut program = UnreadLog { child, log };
    let guard = program.guard();
    let children = || std::fs::read_to_string(format!("/proc/{guard}/task/{guard}/children"));
    wait_until("there is a server", || {
        children().is_ok_and(|it| !it.is_empty())
    });
    let server = crate::lab::server_of(guard);
    wait_until("it has got so far that it says so, or intercepts", || {
        let stat = std::fs::read_to_string(format!("/proc/{server}/stat")).unwrap();
        stat.contains(") S ")
    });
    assert!(program.stop().success());
    wait_until("the server is gone", || {
        let status = std::fs::read_to_string(format!("/proc/{server}/status"));
        status.map_or(true, |status| status.contains("State:\tZ"))
    });
}

#[test]
fn while_the_log_is_not_read_the_guard_reconciles() {
    let lab = Lab::new();
    let program = UnreadLog::start(&lab);
    fill_pipe(program.log.as_ref().unwrap().get_ref());
    assert_reconciles(&lab);
    assert!(lab.client.get(POD, "/").contains("Request received"));
}

#[test]
fn while_the_log_is_not_read_a_stop_ends_in_order_within_its_time() {
    let lab = Lab::new();
    let mut program = UnreadLog::start(&lab);
    fill_log(&lab);
    assert_eq!(program.stop().code(), Some(0));
    assert_eq!(lab.remains(), [""; 0]);
}

#[test]
fn a_slow_reader_slows_requests_down_and_loses_no_line() {
    static IS_OVER: AtomicBool = AtomicBool::new(false);
    let lab = Lab::new();
    let mut program = UnreadLog::start(&lab);
    // 230 KB/s: about 100 lines a second.
    let log = program.read_slowly(Duration::from_millis(18), &IS_OVER);
    let request = long_request();
    let ask = || {
        let mut connection = lab.client.http(POD);
        let start = Instant::now();
        let (mut answered, mut longest) = (0, Duration::ZERO);
        while start.elapsed() < 5 * STUCK {
            let watch = Stopwatch::start();
            assert_eq!(connection.request(&request).status, "200 OK");
            answered += 1;
            longest = longest.max(watch.used());
        }
        (answered, longest)
    };
    let clients: Vec<(usize, Duration)> = thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS).map(|_| scope.spawn(ask)).collect();
        clients.into_iter().map(|it| it.join().unwrap()).collect()
    });
    IS_OVER.store(true, Ordering::SeqCst);
    assert_eq!(program.stop().code(), Some(0));
    let log = log.join().unwrap();

    let answered: usize = clients.iter().map(|(answered, _)| answered).sum();
    assert_eq!((count_received(&log), count_lost(&log)), (answered, 0));
    // Each waits for the lines of all: 80 ms. After 1 s lines would be lost.
    let longest = clients.iter().map(|(_, longest)| longest).max().unwrap();
    assert!(*longest < STUCK / 2, "{longest:?}");
    // The queue and the pipe hold about 1,000 lines: there were more.
    assert!(answered > 1200, "{answered} requests: the log was not full");
}

#[test]
fn a_stop_writes_all_lines_that_wait_as_long_as_they_are_read() {
    static IS_FAST: AtomicBool = AtomicBool::new(false);
    let lab = Lab::new();
    let mut program = UnreadLog::start(&lab);
    let answered = fill_log(&lab);
    // 2 MiB take more than 2 s.
    let log = program.read_slowly(Duration::from_millis(4), &IS_FAST);
    assert_eq!(program.stop().code(), Some(0));
    let log = log.join().unwrap();
    assert!(log.contains(&format!("Served {answered} requests")));
    assert_eq!(count_received(&log) + count_lost(&log), answered);
    assert_eq!(lab.remains(), [""; 0]);
}

#[test]
fn with_a_reader_that_is_too_slow_a_stop_gives_up_and_ends_in_order_within_its_time() {
    static IS_FAST: AtomicBool = AtomicBool::new(false);
    let lab = Lab::new();
    let mut program = UnreadLog::start(&lab);
    fill_log(&lab);
    let log = program.read_slowly(Duration::from_millis(300), &IS_FAST);
    let start = Instant::now();
    assert_eq!(program.stop().code(), Some(0));
    let took = start.elapsed();
    IS_FAST.store(true, Ordering::SeqCst);
    let log = log.join().unwrap();
    assert!(took >= MAX_FLUSH, "{took:?}");
    // Those of 64 KiB in the pipe, and of at least one page a second.
    let written = count_received(&log);
    assert!((34..400).contains(&written), "{written} lines");
    assert!(log.ends_with('\n'));
    assert_eq!(lab.remains(), [""; 0]);
}

#[test]
fn while_the_log_is_not_read_the_nodes_own_requests_are_answered_and_their_lines_counted() {
    let lab = Lab::new();
    let mut program = UnreadLog::start(&lab);
    let answered = fill_log(&lab);
    for _ in 0..8 {
        let answer = lab.node.get("127.0.0.1:1", "/nothing");
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    }
    let text = program.read_on(&lab);
    assert_eq!(count_received(&text) + count_lost(&text), answered + 8 + 1);
}

#[test]
fn without_a_reader_lines_are_lost_and_all_else_goes_on() {
    let lab = Lab::new();
    let mut program = UnreadLog::start(&lab);
    drop(program.log.take());
    for _ in 0..3 {
        assert!(lab.client.get(POD, "/").contains("Request received"));
        assert_reconciles(&lab);
    }
    assert_eq!(program.stop().code(), Some(0));
    assert_eq!(lab.remains(), [""; 0]);
}

#[test]
fn while_the_disk_is_full_lines_are_lost_and_all_else_goes_on() {
    let lab = Lab::new();
    // The mount ends with the test's namespace; the directory is in the build's target.
    let disk = concat!(env!("CARGO_TARGET_TMPDIR"), "/disk");
    std::fs::create_dir_all(disk).unwrap();
    let mount = |options| {
        let line = format!("mount -t tmpfs -o {options} none {disk}");
        lab.node.run(&line)
    };
    mount("size=64k");
    let path = format!("{disk}/log");
    let mut command = lab.node.command(PROGRAM);
    command.args(["--cidr", CIDRS]);
    let mut program = UnreadLog {
        child: command
            .stderr(File::create(&path).unwrap())
            .spawn()
            .unwrap(),
        log: None,
    };
    let log = || std::fs::read_to_string(&path).unwrap();
    wait_until("it intercepts", || log().contains("Created table"));

    let mut connection = lab.client.http(POD);
    let mut ask = || assert_eq!(connection.request(REQUEST).status, "200 OK");
    wait_until("the disk is full", || {
        (0..100).for_each(|_| ask());
        log().len() == 64 * 1024
    });
    (0..100).for_each(|_| ask());
    assert_reconciles(&lab);

    mount("remount,size=1m");
    wait_until("there are lines again", || {
        ask();
        log().len() > 64 * 1024
    });
    assert_eq!(program.stop().code(), Some(0));
    assert_eq!(lab.remains(), [""; 0]);
    let log = log();
    assert!(log.contains("Stopping") && log.contains("Removed table"));
}

#[test]
fn a_stop_in_order_loses_no_line() {
    let lab = Lab::new();
    let mut daemon = lab.start(&[]);
    let answered = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut connection = lab.client.http(POD);
                loop {
                    let answer = connection.request(REQUEST);
                    answered.fetch_add(1, Ordering::SeqCst);
                    if answer.other_fields() == ["Connection: close"] {
                        break;
                    }
                }
            });
        }
        wait_until("there is load", || answered.load(Ordering::SeqCst) > 1000);
        assert_eq!(daemon.stop(), Some(0));
    });
    let answered = answered.into_inner();
    assert_eq!(count_received(&daemon.log()), answered);
    let served = format!("Served {answered} requests on 4 connections");
    assert!(daemon.log().contains(&served), "{served}");
}

#[test]
fn a_line_is_written_within_100_ms_and_waits_for_no_other() {
    let lab = Lab::new();
    let daemon = lab.start(&[]);
    let mut connection = lab.client.http(POD);
    let took = (1..=20).map(|round| {
        for _ in 0..5 {
            assert_eq!(connection.request(REQUEST).status, "200 OK");
        }
        let start = Instant::now();
        wait_until("the last line is written", || {
            count_received(&daemon.log()) == 5 * round
        });
        start.elapsed()
    });
    let mut took: Vec<Duration> = took.collect();
    took.sort();
    // Longer than the few milliseconds for which lines are gathered, shorter than any other delay; a median, as
    // a busy machine delays some.
    assert!(took[10] < Duration::from_millis(100), "{took:?}");
}

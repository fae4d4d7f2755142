//! The queue with a writer that is fast, slow, or stuck.

use std::sync::atomic::AtomicBool;
use std::sync::{Arc, mpsc};

use super::*;

/// A line of the tests, in bytes.
const LENGTH: usize = 1000;

/// Queues a line, and returns whether it was accepted.
fn push(queue: &LogQueue, when_full: WhenFull) -> bool {
    let mut is_accepted = false;
    queue.push(when_full, |lines| {
        is_accepted = true;
        lines.push(&[b'x'; LENGTH - 1]);
        lines.push(b"\n");
    });
    is_accepted
}

/// Fills a queue, and returns the number of lines that it accepted.
fn fill(queue: &LogQueue) -> usize {
    let pushes = 0..2 * CAPACITY / LENGTH;
    pushes.filter(|_| push(queue, WhenFull::Discard)).count()
}

/// Starts a writer that says nothing of lost lines.
fn spawn_writer(
    queue: &'static LogQueue,
    max_write: usize,
    write: impl FnMut(&[u8]) -> usize + Send + 'static,
) {
    thread::spawn(move || queue.write_lines(max_write, |_, _| {}, write));
}

/// What a writer wrote, which says the number of lost lines in a line of its own.
#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl Written {
    /// Starts the writer. Of what a call of it writes, `space` returns the length.
    fn spawn(
        queue: &'static LogQueue,
        mut space: impl FnMut(&[u8]) -> usize + Send + 'static,
    ) -> Written {
        let written = Written::default();
        let output = written.clone();
        let write = move |lines: &[u8]| {
            let length = space(lines);
            output.0.lock().unwrap().extend(&lines[..length]);
            length
        };
        let notice = |lines: &mut Buffer, lost| {
            lines.push_number(lost);
            lines.push(b"\n");
        };
        thread::spawn(move || queue.write_lines(libc::PIPE_BUF, notice, write));
        written
    }

    fn text(&self) -> String {
        String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
    }

    /// The numbers of lost lines.
    fn notices(&self) -> Vec<u64> {
        let text = self.text();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }
}

#[test]
fn the_writer_says_once_how_many_lines_are_lost_and_needs_no_further_line() {
    static QUEUE: LogQueue = LogQueue::empty();
    let accepted = fill(&QUEUE);
    let lost = (2 * CAPACITY / LENGTH - accepted) as u64;
    assert!(lost > 0);
    let written = Written::spawn(&QUEUE, <[u8]>::len);
    QUEUE.flush();
    assert_eq!(written.notices(), [lost]);
    assert_eq!(written.text().lines().count(), accepted + 1);
}

#[test]
fn for_a_stuck_writer_threads_wait_a_second_in_all() {
    static QUEUE: LogQueue = LogQueue::empty();
    fill(&QUEUE);
    let lost = QUEUE.lost();
    let start = Instant::now();
    let wait = || assert!((0..10).all(|_| !push(&QUEUE, WhenFull::Block)));
    thread::scope(|scope| (0..3).for_each(|_| drop(scope.spawn(wait))));
    let took = start.elapsed();
    assert!(took >= STUCK && took < 2 * STUCK, "{took:?}");
    assert_eq!(QUEUE.lost(), lost + 30);
}

#[test]
fn a_writer_is_stuck_until_half_of_the_queue_is_written() {
    static QUEUE: LogQueue = LogQueue::empty();
    let (may_write, writes) = mpsc::channel::<()>();
    let wait = move |lines: &[u8]| {
        // The notice of this writer is empty.
        if !lines.is_empty() {
            let _ = writes.recv();
        }
        lines.len()
    };
    spawn_writer(&QUEUE, libc::PIPE_BUF, wait);
    fill(&QUEUE);
    assert!(!push(&QUEUE, WhenFull::Block));
    let backlog = || QUEUE.backlog(&QUEUE.lock());
    let write_to = |length| {
        while backlog() > length {
            let before = backlog();
            may_write.send(()).unwrap();
            let start = Instant::now();
            while backlog() == before {
                assert!(start.elapsed() < 10 * STUCK, "a write has ended");
                thread::yield_now();
            }
        }
    };
    for (left, is_stuck) in [(CAPACITY - 2 * BLOCK, true), (CAPACITY / 2, false)] {
        write_to(left);
        while push(&QUEUE, WhenFull::Discard) {}
        let start = Instant::now();
        assert!(!push(&QUEUE, WhenFull::Block));
        assert_eq!(start.elapsed() < STUCK, is_stuck, "{left} bytes were left");
    }
}

#[test]
fn for_a_slow_writer_threads_wait_in_turn_and_lose_nothing() {
    static QUEUE: LogQueue = LogQueue::empty();
    fill(&QUEUE);
    let lost = QUEUE.lost();
    // 400 lines a second.
    let slow = |lines: &[u8]| {
        thread::sleep(Duration::from_millis(10));
        lines.len()
    };
    spawn_writer(&QUEUE, libc::PIPE_BUF, slow);
    let wait = || {
        let longest = (0..30).map(|_| {
            let start = Instant::now();
            assert!(push(&QUEUE, WhenFull::Block));
            start.elapsed()
        });
        longest.max().unwrap()
    };
    let start = Instant::now();
    let longest = thread::scope(|scope| {
        let threads: Vec<_> = (0..32).map(|_| scope.spawn(wait)).collect();
        let longest = threads.into_iter().map(|it| it.join().unwrap());
        longest.max().unwrap()
    });
    // Each of the 32 waits for the lines of the others: 80 ms.
    assert!(longest < STUCK / 2, "{longest:?}");
    assert!(start.elapsed() > STUCK, "they wait all the time");
    assert_eq!(QUEUE.lost(), lost);
}

#[test]
fn once_the_writer_moves_again_lines_are_queued_and_memory_is_given_back() {
    static QUEUE: LogQueue = LogQueue::empty();
    fill(&QUEUE);
    assert!(!push(&QUEUE, WhenFull::Block));
    let lost = QUEUE.lost();
    assert!(QUEUE.lock().blocks.len() >= CAPACITY / BLOCK);
    spawn_writer(&QUEUE, usize::MAX, <[u8]>::len);
    QUEUE.flush();
    assert!(push(&QUEUE, WhenFull::Discard));
    assert_eq!((QUEUE.lost(), QUEUE.lock().blocks.len()), (lost, 1));
}

#[test]
fn a_last_line_is_queued_even_if_there_is_no_space() {
    static QUEUE: LogQueue = LogQueue::empty();
    fill(&QUEUE);
    assert!(push(&QUEUE, WhenFull::Exceed));
}

#[test]
fn lines_that_cannot_be_written_are_lost_and_said_with_the_next_ones() {
    static QUEUE: LogQueue = LogQueue::empty();
    // For the first line, a part of the second, and later for all.
    let mut spaces = [4, 0, 0].into_iter();
    let written = Written::spawn(&QUEUE, move |lines| spaces.next().unwrap_or(lines.len()));
    for (lines, lost) in [("a1\nb2\nc3\n", 2), ("d4\n", 3), ("e5\n", 3), ("f6\n", 3)] {
        QUEUE.push(WhenFull::Discard, |queue| queue.push(lines.as_bytes()));
        QUEUE.flush();
        assert_eq!(QUEUE.lost(), lost, "after {lines}");
    }
    // Nothing fits behind "b" at first, neither the number 2 nor "d4".
    assert_eq!(written.text(), "a1\nb\n3\ne5\nf6\n");
}

#[test]
fn a_line_that_lacks_only_its_end_gets_it_and_is_not_lost() {
    static QUEUE: LogQueue = LogQueue::empty();
    let mut spaces = [5].into_iter();
    let written = Written::spawn(&QUEUE, move |lines| spaces.next().unwrap_or(lines.len()));
    for lines in ["a1\nb2\n", "c3\n"] {
        QUEUE.push(WhenFull::Discard, |queue| queue.push(lines.as_bytes()));
        QUEUE.flush();
    }
    assert_eq!((written.text().as_str(), QUEUE.lost()), ("a1\nb2\nc3\n", 0));
}

#[test]
fn a_line_that_is_written_in_parts_stays_one_line() {
    static QUEUE: LogQueue = LogQueue::empty();
    let written = Written::spawn(&QUEUE, <[u8]>::len);
    let lines = format!("{}\nb\n", "x".repeat(libc::PIPE_BUF + 1));
    QUEUE.push(WhenFull::Discard, |queue| queue.push(lines.as_bytes()));
    QUEUE.flush();
    assert_eq!((written.text(), QUEUE.lost()), (lines, 0));
}

#[test]
fn a_flush_gives_up_when_nothing_is_written() {
    static QUEUE: LogQueue = LogQueue::empty();
    fill(&QUEUE);
    let stuck = |_: &[u8]| {
        thread::sleep(Duration::from_secs(3600));
        0
    };
    spawn_writer(&QUEUE, usize::MAX, stuck);
    let start = Instant::now();
    QUEUE.flush();
    assert!(start.elapsed() >= STALL);
}

#[test]
fn a_flush_waits_while_something_is_written() {
    static QUEUE: LogQueue = LogQueue::empty();
    fill(&QUEUE);
    let written = AtomicU64::new(0);
    let written: &'static AtomicU64 = Box::leak(Box::new(written));
    let slow = |lines: &[u8]| {
        thread::sleep(STALL / 50);
        written.fetch_add(lines.len() as u64, Ordering::SeqCst);
        lines.len()
    };
    let queued = QUEUE.lock().length as u64;
    spawn_writer(&QUEUE, CAPACITY / 12, slow);
    QUEUE.flush();
    assert_eq!(written.load(Ordering::SeqCst), queued);
}

#[test]
fn a_flush_gives_up_when_lines_are_written_too_slowly() {
    static QUEUE: LogQueue = LogQueue::empty();
    fill(&QUEUE);
    let slow = |lines: &[u8]| {
        thread::sleep(STALL / 4);
        lines.len()
    };
    spawn_writer(&QUEUE, CAPACITY / 64, slow);
    let start = Instant::now();
    QUEUE.flush();
    let took = start.elapsed();
    assert!(took >= MAX_FLUSH && took < 2 * MAX_FLUSH, "{took:?}");
}

#[test]
fn a_flush_ends_while_other_threads_log_without_end() {
    static QUEUE: LogQueue = LogQueue::empty();
    static IS_OVER: AtomicBool = AtomicBool::new(false);
    spawn_writer(&QUEUE, usize::MAX, <[u8]>::len);
    let log = || {
        while !IS_OVER.load(Ordering::SeqCst) {
            push(&QUEUE, WhenFull::Block);
        }
    };
    (0..2).for_each(|_| drop(thread::spawn(log)));
    let (sender, flushed) = mpsc::channel();
    thread::spawn(move || {
        (0..10).for_each(|_| QUEUE.flush());
        sender.send(())
    });
    let in_time = flushed.recv_timeout(Duration::from_secs(10));
    IS_OVER.store(true, Ordering::SeqCst);
    assert_eq!(in_time, Ok(()));
}

#[test]
fn a_part_is_as_many_whole_lines_as_a_pipe_takes_at_once() {
    let line = |length: usize| format!("{}\n", "x".repeat(length - 1));
    let lines = [line(4000), line(96), line(1), line(5000), line(7)].concat();
    let lengths: Vec<usize> = split_lines(lines.as_bytes(), libc::PIPE_BUF)
        .map(<[u8]>::len)
        .collect();
    assert_eq!(lengths, [4096, 1, 4096, 904 + 7]);
    assert_eq!(
        split_lines(lines.as_bytes(), libc::PIPE_BUF)
            .collect::<Vec<_>>()
            .concat(),
        lines.as_bytes()
    );
    assert_eq!(split_lines(b"", libc::PIPE_BUF).count(), 0);
}

//! The queue with a writer that is fast, slow, or stuck.

use std::sync::atomic::AtomicBool;
use std::sync::mpsc;

use super::*;

/// Fills a queue, and returns the number of lines that it accepted.
fn fill(queue: &LogQueue) -> usize {
    let mut accepted = 0;
    for _ in 0..2 * CAPACITY / 1000 {
        queue.push(WhenFull::Discard, |lines, _| {
            accepted += 1;
            lines.push(&[b'\n'; 1000]);
        });
    }
    accepted
}

#[test]
fn the_line_after_lost_lines_gets_their_number() {
    static QUEUE: LogQueue = LogQueue::empty();
    let lost = (2 * CAPACITY / 1000 - fill(&QUEUE)) as u64;
    assert!(lost > 0);
    thread::spawn(|| QUEUE.write_lines(usize::MAX, <[u8]>::len));
    let numbers = [(); 2].map(|()| {
        let mut number = 0;
        QUEUE.push(WhenFull::Block, |lines, lost| {
            number = lost;
            lines.push(b"\n");
        });
        number
    });
    assert_eq!(numbers, [lost, 0]);
}

/// Queues a line, and returns whether it was accepted.
fn push(queue: &LogQueue, when_full: WhenFull) -> bool {
    let mut is_accepted = false;
    queue.push(when_full, |lines, _| {
        is_accepted = true;
        lines.push(&[b'\n'; 1000]);
    });
    is_accepted
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
    assert!(took > STUCK / 2 && took < 2 * STUCK, "{took:?}");
    assert_eq!(QUEUE.lost(), lost + 30);
}

#[test]
fn a_writer_that_had_nothing_to_write_is_not_stuck() {
    static QUEUE: LogQueue = LogQueue::empty();
    assert!(push(&QUEUE, WhenFull::Discard));
    QUEUE.take_batch(&mut Buffer::default());
    thread::sleep(STUCK);
    fill(&QUEUE);
    let start = Instant::now();
    assert!(!push(&QUEUE, WhenFull::Block));
    assert!(start.elapsed() > STUCK / 2);
}

#[test]
fn for_a_slow_writer_threads_wait_and_lose_nothing() {
    static QUEUE: LogQueue = LogQueue::empty();
    fill(&QUEUE);
    let lost = QUEUE.lost();
    let slow = |lines: &[u8]| {
        thread::sleep(STUCK / 4);
        lines.len()
    };
    thread::spawn(move || QUEUE.write_lines(usize::MAX, slow));
    let start = Instant::now();
    assert!((0..4 * BLOCK / 1000).all(|_| push(&QUEUE, WhenFull::Block)));
    assert!(start.elapsed() > STUCK / 2);
    assert_eq!(QUEUE.lost(), lost);
}

#[test]
fn once_the_writer_moves_again_lines_are_queued_and_memory_is_given_back() {
    static QUEUE: LogQueue = LogQueue::empty();
    fill(&QUEUE);
    assert!(!push(&QUEUE, WhenFull::Block));
    let lost = QUEUE.lost();
    assert!(QUEUE.lock().blocks.len() >= CAPACITY / BLOCK);
    thread::spawn(move || QUEUE.write_lines(usize::MAX, <[u8]>::len));
    QUEUE.flush();
    assert!(push(&QUEUE, WhenFull::Discard));
    assert_eq!((QUEUE.lost(), QUEUE.lock().blocks.len()), (lost, 1));
}

#[test]
fn a_last_line_is_queued_with_the_number_of_lost_ones_even_if_there_is_no_space() {
    static QUEUE: LogQueue = LogQueue::empty();
    fill(&QUEUE);
    let mut number = 0;
    QUEUE.push(WhenFull::Exceed, |lines, lost| {
        number = lost;
        lines.push(b"\n");
    });
    assert!(number > 0);
    assert_eq!(number, QUEUE.lost());
}

#[test]
fn lines_that_cannot_be_written_are_lost() {
    static QUEUE: LogQueue = LogQueue::empty();
    thread::spawn(|| QUEUE.write_lines(usize::MAX, |_| 3));
    QUEUE.push(WhenFull::Discard, |lines, _| lines.push(b"1\n2\n3\n"));
    QUEUE.flush();
    assert_eq!(QUEUE.lost(), 2);
}

#[test]
fn a_flush_gives_up_when_nothing_is_written() {
    static QUEUE: LogQueue = LogQueue::empty();
    fill(&QUEUE);
    let stuck = |_: &[u8]| {
        thread::sleep(Duration::from_secs(3600));
        0
    };
    thread::spawn(move || QUEUE.write_lines(usize::MAX, stuck));
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
    thread::spawn(move || QUEUE.write_lines(CAPACITY / 12, slow));
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
    thread::spawn(move || QUEUE.write_lines(CAPACITY / 64, slow));
    let start = Instant::now();
    QUEUE.flush();
    let took = start.elapsed();
    assert!(took >= MAX_FLUSH && took < 2 * MAX_FLUSH, "{took:?}");
}

#[test]
fn a_flush_ends_while_other_threads_log_without_end() {
    static QUEUE: LogQueue = LogQueue::empty();
    static IS_OVER: AtomicBool = AtomicBool::new(false);
    thread::spawn(|| QUEUE.write_lines(usize::MAX, <[u8]>::len));
    let log = || {
        while !IS_OVER.load(Ordering::SeqCst) {
            QUEUE.push(WhenFull::Block, |lines, _| lines.push(&[b'\n'; 1000]));
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

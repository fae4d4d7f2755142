//! Which connection gives way to a client that waits.
//!
//! A worker parks its connection in its slot while it waits for the client, with the time from which the
//! connection may give way; the earliest goes first. That time is the client's last progress and an allowance:
//!
//! - [`ALLOWANCE`], and as much again for each request that it has been answered;
//! - within a request, [`REQUEST_ALLOWANCE`] more, and the time that takes at [`RATE`] what it has sent. If bytes
//!   come more slowly than that, they are no progress once the request is [`REQUEST_ALLOWANCE`] old. Where many
//!   clients wait, less is allowed, so that none waits for that long.
//!
//! Together it is [`MAX_ALLOWANCE`] at most.
//!
//! Three ranks go one after another: connections that have not been answered a request; those of a client
//! address that has more than half of all connections; all others, unless one of that address gives way soon.
//!
//! A slot is one atomic word, so that a request takes no lock.

use std::collections::BinaryHeap;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};

use crate::server::stream;

/// Time without a request, for each that was answered and the first, for which a connection never gives way.
pub const ALLOWANCE: Duration = Duration::from_millis(20);

/// Time without progress within a request for which a connection never gives way, if not many clients wait.
const REQUEST_ALLOWANCE: Duration = Duration::from_millis(100);

/// Longest such time, whatever the connection has received.
const MAX_ALLOWANCE: Duration = Duration::from_secs(1);

/// Rate at which any client is expected to send a request, in bytes per second.
const RATE: u64 = 64 * 1024;

/// Time that clients wait at most for the sake of [`REQUEST_ALLOWANCE`].
const PATIENCE: Duration = Duration::from_millis(20);

/// Time without a first byte for which a connection never gives way. The kernel has waited for it as long as
/// [`DEFER_ACCEPT`](crate::server::listener) says, unless the handshake was by SYN cookie.
const FIRST_BYTE_ALLOWANCE: Duration = Duration::from_secs(1);

/// Time after which a client is asked again whether it has acknowledged its response.
const ACKNOWLEDGE_TIME: Duration = Duration::from_millis(5);

/// The word of a slot without a parked connection.
const BUSY: u64 = 0;
/// The word of a connection that was evicted. Any other word is the time from which the connection may give
/// way, in ns since the start of the slots, shifted by one, and these bits:
const EVICTED: u64 = u64::MAX;
/// A request has been answered on it.
const ANSWERED: u64 = 1 << 63;
/// Its client's address does not have most of the connections; never set in a slot.
const MINOR: u64 = 1 << 62;
/// Its client had yet to acknowledge what was sent when it was asked.
const ASKED: u64 = 1 << 61;
/// A request has begun.
const BEGUN: u64 = 1;
/// The bits of a word in a slot that are not the time.
const BITS: u64 = ANSWERED | ASKED | BEGUN;
/// The time that is soon, in the same unit.
const SOON: u64 = (ALLOWANCE.as_nanos() as u64) << 1;
/// The bits that rank connections.
const RANK: u64 = ANSWERED | MINOR;

/// How far the client of a connection has come.
#[derive(Clone, Copy, Debug)]
pub struct Progress {
    /// Requests that it has been answered.
    pub answered: u32,
    /// When the current request began; without one, the time of the last response or of the accept4(2).
    pub since: Instant,
    /// Bytes of the current request that were received; `None` before the first.
    pub received: Option<u64>,
}

impl Progress {
    /// The time from which its connection may give way.
    fn gives_way_from(&self) -> Instant {
        let allowance = ALLOWANCE * self.answered.min(1000).saturating_add(1);
        let Some(received) = self.received else {
            return self.since + allowance.min(MAX_ALLOWANCE);
        };
        let earned = Duration::from_micros(received.saturating_mul(1_000_000 / RATE));
        let progress = Instant::now().min(self.since + REQUEST_ALLOWANCE + earned);
        progress + (allowance + REQUEST_ALLOWANCE + earned).min(MAX_ALLOWANCE)
    }
}

/// By how much [`REQUEST_ALLOWANCE`] is shortened where as many clients wait: in what is left, as many connections
/// give way as the limit of `size` allows at once, and then as many again, until the last client is served.
fn shortened(size: usize, waiting: usize) -> Duration {
    let [size, waiting] = [size, waiting.max(1)].map(|number| number.min(1 << 20) as u32);
    REQUEST_ALLOWANCE.saturating_sub(PATIENCE * size / waiting)
}

/// The slot of a worker.
#[derive(Debug)]
pub struct Slot {
    /// When all slots started.
    start: Instant,
    word: AtomicU64,
    descriptor: AtomicI32,
    /// The client's address, as [`fold`] makes it; 0 without a connection.
    client: AtomicU64,
    /// The time from which the connection may give way without a first byte.
    first_byte: AtomicU64,
}

impl Slot {
    /// An empty slot, whose times count from `start`.
    pub fn new(start: Instant) -> Slot {
        Slot {
            start,
            word: AtomicU64::new(BUSY),
            descriptor: AtomicI32::new(-1),
            client: AtomicU64::new(0),
            first_byte: AtomicU64::new(0),
        }
    }

    /// Takes a connection in. Its worker is busy with it.
    pub fn open(&self, descriptor: RawFd, client: IpAddr) {
        self.descriptor.store(descriptor, Ordering::Relaxed);
        self.client.store(fold(client), Ordering::Relaxed);
        let first_byte = self.time(Instant::now() + FIRST_BYTE_ALLOWANCE);
        self.first_byte.store(first_byte, Ordering::Relaxed);
    }

    /// Forgets the connection.
    pub fn clear(&self) {
        self.client.store(0, Ordering::Relaxed);
    }

    /// Parks the connection: from now on another thread may end it.
    pub fn park(&self, progress: &Progress) {
        let mut word = self.time(progress.gives_way_from());
        if progress.answered > 0 {
            word |= ANSWERED;
        }
        if progress.received.is_some() {
            word |= BEGUN;
        }
        self.word.store(word, Ordering::Release);
    }

    /// Makes the connection busy again; returns `false` if it was evicted. Then its descriptor may be closed
    /// only after the lock under which [`Slot::end`] is called has been held once.
    pub fn unpark(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        (word != EVICTED && self.replace(word, BUSY)) || {
            self.word.store(BUSY, Ordering::Release);
            false
        }
    }

    /// Ends the connection if it is evicted: its worker reads what has arrived, and then the end of the stream.
    pub fn end(&self) {
        if self.word.load(Ordering::Acquire) == EVICTED {
            // Fails with ENOTCONN if the client has gone.
            let _ = shutdown(self.descriptor.load(Ordering::Relaxed), Shutdown::Read);
        }
    }

    /// Evicts the connection if it waits for a request to begin.
    pub fn evict_unbegun(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        !matches!(word, BUSY | EVICTED) && word & BEGUN == 0 && self.replace(word, EVICTED)
    }

    /// Evicts the connection if its word is still this. If its client has yet to acknowledge what was sent, or may
    /// have had no time to send anything, it is asked again later.
    fn evict(&self, word: u64, now: Instant) -> bool {
        // Should the descriptor be another connection's by now, the word has changed, too.
        let descriptor = self.descriptor.load(Ordering::Relaxed);
        let first_byte = self.first_byte.load(Ordering::Relaxed);
        let is_new = word & (ANSWERED | BEGUN) == 0 && first_byte > self.time(now);
        let later = if is_new && !stream::was_deferred(descriptor) {
            first_byte
        } else if !stream::is_acknowledged(descriptor) {
            self.time(now + ACKNOWLEDGE_TIME) | word & BITS | ASKED
        } else {
            return self.replace(word, EVICTED);
        };
        self.replace(word, later);
        false
    }

    fn time(&self, at: Instant) -> u64 {
        let time = at.saturating_duration_since(self.start);
        (time.as_secs() * 1_000_000_000 + u64::from(time.subsec_nanos())) << 1
    }

    fn replace(&self, word: u64, other: u64) -> bool {
        let replaced = self
            .word
            .compare_exchange(word, other, Ordering::AcqRel, Ordering::Relaxed);
        replaced.is_ok()
    }
}

/// Evicts up to `count` connections of the first rank that may give way now, the earliest first; returns their
/// slots, for [`Slot::end`]. If a client of that rank has yet to acknowledge what was sent, and is asked for the
/// first time, those of later ranks are spared. The limit is `size`, and as many clients are `waiting`.
pub fn evict(slots: &[Arc<Slot>], count: usize, size: usize, waiting: usize) -> Vec<Arc<Slot>> {
    let now = Instant::now();
    let mut only_rank = None;
    loop {
        let look = |slot: &Arc<Slot>| Parked {
            word: slot.word.load(Ordering::Relaxed),
            client: slot.client.load(Ordering::Relaxed),
        };
        let parked: Vec<_> = slots.iter().map(look).collect();
        let time = |at| slots.first().map_or(0, |slot| slot.time(at));
        let times = [time(now), time(now + shortened(size, waiting))];
        let chosen = choose(&parked, count, times);
        let Some((first, _)) = chosen.first() else {
            return Vec::new();
        };
        if only_rank.is_some_and(|rank| rank != first & RANK) {
            return Vec::new();
        }
        let mut evicted = Vec::new();
        for (ranked, at) in &chosen {
            match slots[*at].evict(parked[*at].word, now) {
                true => evicted.push(Arc::clone(&slots[*at])),
                false if ranked & ASKED == 0 => only_rank = Some(ranked & RANK),
                false => {}
            }
        }
        // One that is not evicted has another word now, and is not chosen again.
        if !evicted.is_empty() {
            return evicted;
        }
    }
}

/// What a slot holds.
#[derive(Clone, Copy, Debug)]
struct Parked {
    word: u64,
    client: u64,
}

/// Up to `count` connections of the first rank that may give way, the earliest first: their words with their
/// ranks, and their numbers. `times` are those for connections without a begun request and with one.
fn choose(parked: &[Parked], count: usize, times: [u64; 2]) -> Vec<(u64, usize)> {
    let major = majority(parked.iter().map(|it| it.client).filter(|it| *it != 0));
    let mut first = BinaryHeap::with_capacity(count + 1);
    let mut are_others_spared = false;
    for (at, Parked { word, client }) in parked.iter().copied().enumerate() {
        if matches!(word, BUSY | EVICTED) {
            continue;
        }
        let is_shortened = word & (BEGUN | ASKED) == BEGUN;
        let left = (word & !BITS).saturating_sub(times[usize::from(is_shortened)]);
        are_others_spared |= major == Some(client) && left <= SOON && word & ASKED == 0;
        if left > 0 {
            continue;
        }
        let minor = if major == Some(client) { 0 } else { MINOR };
        first.push((word | minor, at));
        if first.len() > count {
            first.pop();
        }
    }
    let mut first = first.into_sorted_vec();
    if let Some((earliest, _)) = first.first().copied() {
        let rank = earliest & RANK;
        let is_spared = rank == ANSWERED | MINOR && are_others_spared;
        first.retain(|(word, _)| word & RANK == rank && !is_spared);
    }
    first
}

/// The value that more than half of all are (the vote of Boyer and Moore).
fn majority(values: impl Iterator<Item = u64> + Clone) -> Option<u64> {
    let (mut candidate, mut lead) = (0, 0u32);
    for value in values.clone() {
        match lead {
            0 => (candidate, lead) = (value, 1),
            _ if value == candidate => lead += 1,
            _ => lead -= 1,
        }
    }
    let (mut same, mut all) = (0usize, 0usize);
    for value in values {
        same += usize::from(value == candidate);
        all += 1;
    }
    (2 * same > all).then_some(candidate)
}

/// An address as a number that is not 0.
fn fold(address: IpAddr) -> u64 {
    let folded = match address {
        IpAddr::V4(address) => u64::from(address.to_bits()),
        IpAddr::V6(address) => {
            let bits = address.to_bits();
            (bits >> 64) as u64 ^ (bits as u64).rotate_left(17)
        }
    };
    folded.max(1)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

    /// A word of a connection that gives way at this time.
    fn gives_way_at(time: u64, bits: u64) -> u64 {
        time << 1 | bits
    }

    fn choose_at(time: u64, parked: &[(u64, u64)]) -> Vec<usize> {
        let look = |&(word, client)| Parked { word, client };
        let parked: Vec<_> = parked.iter().map(look).collect();
        let chosen = choose(&parked, 3, [time << 1; 2]);
        chosen.iter().map(|(_, at)| *at).collect()
    }

    #[test]
    fn the_earliest_connections_give_way_first_and_busy_ones_never() {
        let words = [BUSY, EVICTED, 5 << 1, 4 << 1, 7 << 1, 3 << 1, 6 << 1];
        let parked = words.map(|word| (word, 0));
        assert_eq!(choose_at(2, &parked), []);
        assert_eq!(choose_at(4, &parked), [5, 3]);
        assert_eq!(choose_at(9, &parked), [5, 3, 2]);
    }

    #[test]
    fn connections_without_an_answer_go_first_and_then_those_of_the_largest_address() {
        let time = 1 << 40;
        let old = gives_way_at(1, ANSWERED);
        let new = gives_way_at(time, ANSWERED);
        let later = gives_way_at(time + 1, ANSWERED);
        let begun = gives_way_at(time, BEGUN);
        let after = |first| choose_at(time, &[(old, 1), first, (new, 2), (new, 2), (new, 2)]);
        assert_eq!(after((begun, 1)), [1]);
        assert_eq!(after((begun, 2)), [1]);
        assert_eq!(after((old, 1)), [2, 3, 4]);
        // Without a majority the oldest go first; with one that gives way soon, none of the others.
        assert_eq!(
            choose_at(time, &[(old, 1), (new, 2), (new, 3), (new, 4)]),
            [0, 1, 2]
        );
        assert_eq!(choose_at(time, &[(old, 1), (later, 2), (later, 2)]), []);
        assert_eq!(choose_at(time, &[(old, 1), (BUSY, 2), (BUSY, 2)]), [0]);
    }

    #[test]
    fn a_client_gains_time_by_answers_and_by_bytes_at_a_rate() {
        let now = Instant::now();
        let after = |answered, age: u32, received: Option<u64>| {
            let since = now - age * MS;
            let progress = Progress {
                answered,
                since,
                received,
            };
            progress.gives_way_from().saturating_duration_since(since)
        };
        assert_eq!(after(0, 500, None), 20 * MS);
        assert_eq!(after(2, 500, None), 60 * MS);
        assert_eq!(after(1_000_000, 500, None), 1000 * MS);
        // A byte now and then, and 32 KiB in half a second.
        assert!(after(0, 500, Some(50)) < 230 * MS);
        assert!(after(0, 500, Some(32 * 1024)) >= 1000 * MS);
        assert!(after(0, 10_000, Some(1 << 20)) >= 10_900 * MS);
    }

    #[test]
    fn the_more_clients_wait_the_less_a_begun_request_is_spared() {
        let spared = [0, 1, 204, 1024, 4096].map(|waiting| shortened(1024, waiting));
        assert_eq!(spared, [0, 0, 0, 80, 95].map(|ms| ms * MS));
    }

    #[test]
    fn an_evicted_connection_reads_its_end_and_others_go_on() {
        let pairs = [(); 3].map(|()| UnixStream::pair().unwrap());
        let start = Instant::now() - 1000 * MS;
        let slots = [0, 1, 2].map(|at: usize| {
            let slot = Slot::new(start);
            slot.open(pairs[at].0.as_raw_fd(), IpAddr::from([10, 0, 0, 1]));
            let since = start + (3 - at as u32) * MS;
            slot.park(&Progress {
                answered: 0,
                since,
                received: None,
            });
            Arc::new(slot)
        });
        assert!(slots[2].unpark());
        for slot in evict(&slots, 1, 1, 1) {
            slot.end();
        }
        let ended = pairs.each_ref().map(|(stream, _)| {
            stream.set_nonblocking(true).unwrap();
            (&*stream).read(&mut [0]).is_ok()
        });
        assert_eq!(ended, [false, true, false]);
        assert_eq!([slots[0].unpark(), slots[1].unpark()], [true, false]);
    }
}

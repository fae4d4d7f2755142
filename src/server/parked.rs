//! The connections that wait for their clients, and from when on each may give way to a client that waits.
//!
//! A worker parks its connection in its slot while it waits for the client, with the time from which the
//! connection may give way. That time is the client's last progress and an allowance:
//!
//! - [`ALLOWANCE`], and as much again for each request that it has been answered;
//! - within a request, [`REQUEST_ALLOWANCE`] more, and the time that takes at [`RATE`] what it has sent. If bytes
//!   come more slowly than that, they are no progress once the request is [`REQUEST_ALLOWANCE`] old.
//!
//! Together it is [`MAX_ALLOWANCE`] at most. When it is over, the kernel is asked what it knows of the client: see
//! `Slot::spares`. Which of the connections that may give way does so is not decided here.
//!
//! A connection whose response is delayed is parked, too, and may give way at once: then the response is sent.
//!
//! A slot is one atomic word, so that a request that is not delayed takes no lock.

use std::net::IpAddr;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicI32, AtomicU64, Ordering};
use std::sync::{Condvar, MutexGuard};
use std::time::{Duration, Instant};

use nix::sys::socket::{Shutdown, shutdown};

use crate::server::stream;
use crate::sys;

/// Time without a request, for each that was answered and the first, for which a connection never gives way.
pub const ALLOWANCE: Duration = Duration::from_millis(20);

/// Time without progress within a request for which a connection never gives way, if not many clients wait.
pub const REQUEST_ALLOWANCE: Duration = Duration::from_millis(100);

/// Longest such time, whatever the connection has received.
const MAX_ALLOWANCE: Duration = Duration::from_secs(1);

/// Rate at which any client is expected to send a request, in bytes per second.
const RATE: u64 = 64 * 1024;

/// Time without a first byte for which a connection never gives way. The kernel has waited for it as long as
/// [`DEFER_ACCEPT`](crate::server::listener) says, unless the handshake was by SYN cookie.
const FIRST_BYTE_ALLOWANCE: Duration = Duration::from_secs(1);

/// Time after which a client is asked again whether it has acknowledged its response.
const ACKNOWLEDGE_TIME: Duration = Duration::from_millis(5);

/// Time that a worker has to read what has arrived, once before it parks the connection anew.
const READ_TIME: Duration = Duration::from_millis(100);

/// The word of a slot without a parked connection.
pub const BUSY: u64 = 0;
/// Any other word is the time from which the connection may give way, in ns since the start of the slots, shifted by
/// one, and these bits:
///
/// A request has been answered on it.
pub const ANSWERED: u64 = 1 << 63;
/// Its response is delayed.
pub const DELAYED: u64 = 1 << 60;
/// It was evicted: the word has no time any more.
pub const EVICTED: u64 = 1 << 59;
/// The kernel has spared its client once.
pub const ASKED: u64 = 1 << 61;
/// A request has begun.
pub const BEGUN: u64 = 1;
/// The bits of a word in a slot that are not the time.
pub const BITS: u64 = ANSWERED | ASKED | DELAYED | BEGUN;

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
    /// Signals that the connection is evicted while its response is delayed.
    evicted: Condvar,
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
            evicted: Condvar::new(),
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

    /// Parks the connection while its response is delayed: it may give way from now on.
    pub fn park_delayed(&self) {
        let word = self.time(Instant::now()) | DELAYED | BEGUN;
        self.word.store(word, Ordering::Release);
    }

    /// Waits for up to this time until the connection is evicted, under the lock under which [`Slot::end`] is called.
    pub fn wait_evicted<T>(&self, lock: MutexGuard<'_, T>, time: Duration) {
        let is_parked = |_: &mut T| self.word() & EVICTED == 0;
        drop(self.evicted.wait_timeout_while(lock, time, is_parked));
    }

    /// Makes the connection busy again; returns `false` if it was evicted. Then its descriptor may be closed
    /// only after the lock under which [`Slot::end`] is called has been held once.
    pub fn unpark(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        (word & EVICTED == 0 && self.replace(word, BUSY)) || {
            self.word.store(BUSY, Ordering::Release);
            false
        }
    }

    /// Ends the connection if it is evicted: its worker sends a delayed response, or reads what has arrived, and then
    /// the end of the stream.
    pub fn end(&self) {
        let word = self.word.load(Ordering::Acquire);
        if word & EVICTED == 0 {
            return;
        }
        if word & DELAYED != 0 {
            self.evicted.notify_one();
        } else {
            // Fails with ENOTCONN if the client has gone.
            let _ = shutdown(self.descriptor.load(Ordering::Relaxed), Shutdown::Read);
        }
    }

    /// Evicts the connection if it waits for a request to begin.
    pub fn evict_unbegun(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        is_parked(word) && word & BEGUN == 0 && self.replace(word, EVICTED)
    }

    /// Evicts the connection if its response is delayed.
    pub fn evict_delayed(&self) -> bool {
        let word = self.word.load(Ordering::Relaxed);
        is_parked(word) && word & DELAYED != 0 && self.replace(word, EVICTED | DELAYED)
    }

    /// Evicts the connection if its word is still this, and the kernel knows no reason to spare it. Otherwise it
    /// may give way later.
    pub fn evict(&self, word: u64, now: Instant) -> bool {
        // Should the descriptor be another connection's by now, the word has changed, too.
        let later = self.spares(word, now);
        let evicted = EVICTED | word & DELAYED;
        let next = later.map_or(evicted, |later| later | word & BITS | ASKED);
        self.replace(word, next) && later.is_none()
    }

    /// The time until which the connection is spared, if it is: its client has yet to acknowledge what was sent, or
    /// to send a first byte for which the kernel has not waited, or its worker has yet to read what has arrived.
    fn spares(&self, word: u64, now: Instant) -> Option<u64> {
        if word & DELAYED != 0 {
            return None;
        }
        let descriptor = self.descriptor.load(Ordering::Relaxed);
        if word & ASKED == 0 && stream::has_unread(descriptor) {
            return Some(self.time(now + READ_TIME));
        }
        let info = sys::tcp_info(descriptor).ok()?;
        if !stream::is_acknowledged(&info) {
            return Some(self.time(now + ACKNOWLEDGE_TIME));
        }
        let first_byte = self.first_byte.load(Ordering::Relaxed);
        let is_silent = word & (ANSWERED | BEGUN) == 0 && !stream::was_deferred(&info);
        (is_silent && first_byte > self.time(now)).then_some(first_byte)
    }

    /// The word.
    pub fn word(&self) -> u64 {
        self.word.load(Ordering::Relaxed)
    }

    /// The client's address as a number, or 0 without a connection.
    pub fn client(&self) -> u64 {
        self.client.load(Ordering::Relaxed)
    }

    /// A time as in a word.
    pub fn time(&self, at: Instant) -> u64 {
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

/// Whether the word is of a connection that waits, and was not evicted.
pub fn is_parked(word: u64) -> bool {
    word != BUSY && word & EVICTED == 0
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
    use std::io::{Read, Write};
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    const MS: Duration = Duration::from_millis(1);

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
    fn a_connection_with_unread_bytes_is_spared_once() {
        let (mut stream, mut client) = UnixStream::pair().unwrap();
        let slot = Slot::new(Instant::now() - 1000 * MS);
        slot.open(stream.as_raw_fd(), IpAddr::from([10, 0, 0, 1]));
        let park = || {
            slot.park(&Progress {
                answered: 0,
                since: slot.start,
                received: Some(1),
            });
        };
        let evict = || slot.evict(slot.word(), Instant::now());
        client.write_all(b"x").unwrap();
        park();
        assert_eq!([evict(), evict()], [false, true]);
        assert!(!slot.unpark());
        park();
        assert!(!evict());
        assert!(slot.unpark());
        stream.read_exact(&mut [0]).unwrap();
        park();
        assert!(evict());
    }
}

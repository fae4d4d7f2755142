//! Chooses the connections that give way to clients that wait.
//!
//! Ranks go one after another: connections whose response is delayed, which send it; connections that have not been
//! answered a request, and of these first those of a client address that has more than half of all connections; the
//! others of that address; all others, unless one of that address gives way soon.
//!
//! Within a rank the earliest goes first, by the time in its [`Slot`]. Where many clients wait, a begun request
//! gives way earlier, so that none of them waits for [`REQUEST_ALLOWANCE`].

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::server::parked::{
    ALLOWANCE, ANSWERED, ASKED, BEGUN, BITS, DELAYED, REQUEST_ALLOWANCE, Slot, is_parked,
};

/// Time that clients wait at most for the sake of [`REQUEST_ALLOWANCE`].
const PATIENCE: Duration = Duration::from_millis(20);

/// Its client's address does not have most of the connections; never set in a slot.
const MINOR: u64 = 1 << 62;
/// How soon a connection of that address has to give way for others to be spared, in the unit of a word.
const SOON: u64 = (ALLOWANCE.as_nanos() as u64) << 1;
/// The bits that rank connections.
const RANK: u64 = ANSWERED | MINOR | DELAYED;

/// By how much [`REQUEST_ALLOWANCE`] is shortened where as many clients wait: in what is left, as many connections
/// give way as the limit of `size` allows at once, and then as many again, until the last client is served.
fn shortened(size: usize, waiting: usize) -> Duration {
    let [size, waiting] = [size, waiting.max(1)].map(|number| number.min(1 << 20) as u32);
    REQUEST_ALLOWANCE.saturating_sub(PATIENCE * size / waiting)
}

/// Evicts up to `count` connections of the first rank that may give way now, the earliest first; returns their
/// slots, for [`Slot::end`]. The limit is `size`, and as many clients are `waiting`.
pub fn evict(slots: &[Arc<Slot>], count: usize, size: usize, waiting: usize) -> Vec<Arc<Slot>> {
    let now = Instant::now();
    let look = |slot: &Arc<Slot>| Parked {
        word: slot.word(),
        client: slot.client(),
    };
    let parked: Vec<_> = slots.iter().map(look).collect();
    let time = |at| slots.first().map_or(0, |slot| slot.time(at));
    let times = [time(now), time(now + shortened(size, waiting))];
    let evict = |at: usize| slots[at].evict(parked[at].word, now);
    let evicted = choose(&parked, count, times, evict).into_iter();
    evicted.map(|at| Arc::clone(&slots[at])).collect()
}

/// What a slot holds.
#[derive(Clone, Copy, Debug)]
struct Parked {
    word: u64,
    client: u64,
}

/// Calls `evict` for the connections that may give way, by rank and time, until `count` of one rank are evicted;
/// returns their numbers. `times` are those for connections without a begun request and with one.
fn choose(
    parked: &[Parked],
    count: usize,
    times: [u64; 2],
    evict: impl Fn(usize) -> bool,
) -> Vec<usize> {
    let major = majority(parked.iter().map(|it| it.client).filter(|it| *it != 0));
    let mut queue = Vec::new();
    let mut are_others_spared = false;
    for (at, Parked { word, client }) in parked.iter().copied().enumerate() {
        if !is_parked(word) {
            continue;
        }
        let is_shortened = word & (BEGUN | ASKED) == BEGUN;
        let left = (word & !BITS).saturating_sub(times[usize::from(is_shortened)]);
        are_others_spared |= major == Some(client) && left <= SOON && word & ASKED == 0;
        if left == 0 {
            let rank = match word & DELAYED {
                0 if major == Some(client) => DELAYED,
                0 => DELAYED | MINOR,
                _ => 0,
            };
            queue.push(Reverse((word & !DELAYED | rank, at)));
        }
    }
    let mut queue = BinaryHeap::from(queue);
    let (mut chosen, mut chosen_rank) = (Vec::new(), None);
    while let Some(Reverse((word, at))) = queue.pop() {
        let rank = word & RANK;
        let is_spared = rank == RANK && are_others_spared;
        if is_spared || chosen.len() == count || chosen_rank.is_some_and(|it| it != rank) {
            break;
        }
        if evict(at) {
            chosen.push(at);
            chosen_rank = Some(rank);
        }
    }
    chosen
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

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::net::IpAddr;
    use std::os::fd::AsRawFd;
    use std::os::unix::net::UnixStream;

    use super::*;
    use crate::server::parked::{BUSY, EVICTED, Progress};

    const MS: Duration = Duration::from_millis(1);

    /// A word of a connection that gives way at this time.
    fn gives_way_at(time: u64, bits: u64) -> u64 {
        time << 1 | bits
    }

    fn choose_at(time: u64, parked: &[(u64, u64)]) -> Vec<usize> {
        let look = |&(word, client)| Parked { word, client };
        let parked: Vec<_> = parked.iter().map(look).collect();
        choose(&parked, 3, [time << 1; 2], |_| true)
    }

    #[test]
    fn delayed_responses_are_sent_first_the_oldest_before_others() {
        let delayed = gives_way_at(3, DELAYED | BEGUN);
        let older = gives_way_at(2, DELAYED | BEGUN);
        let silent = gives_way_at(1, 0);
        let parked = [(silent, 1), (delayed, 1), (older, 2)];
        assert_eq!(choose_at(9, &parked), [2, 1]);
        assert_eq!(choose_at(9, &parked[..1]), [0]);
    }

    #[test]
    fn the_earliest_connections_give_way_first_and_busy_ones_never() {
        let words = [BUSY, EVICTED, 5 << 1, 4 << 1, 7 << 1, 3 << 1, 6 << 1];
        let parked = words.map(|word| (word, 0));
        assert!(choose_at(2, &parked).is_empty());
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
        assert!(choose_at(time, &[(old, 1), (later, 2), (later, 2)]).is_empty());
        assert_eq!(choose_at(time, &[(old, 1), (BUSY, 2), (BUSY, 2)]), [0]);
    }

    #[test]
    fn a_connection_that_is_spared_is_passed_over_and_then_a_rank() {
        let words = [0, BEGUN, ANSWERED].map(|bits| gives_way_at(1, bits));
        let parked = words.map(|word| Parked { word, client: 0 });
        let evicted = |spared: &[usize]| choose(&parked, 2, [2; 2], |at| !spared.contains(&at));
        assert_eq!(evicted(&[]), [0, 1]);
        assert_eq!(evicted(&[0]), [1]);
        assert_eq!(evicted(&[0, 1]), [2]);
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

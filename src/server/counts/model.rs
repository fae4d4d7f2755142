//! Goes through all states of a small server that decides by [`Counts`].

use std::collections::HashSet;
use std::io;

use crate::server::counts::Counts;

/// Most clients that wait at once: more than are evicted for at once, and for each listener one.
const MOST_QUEUED: usize = 2;

/// What a worker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Worker {
    /// Waits at the acceptor.
    Idle,
    /// Has the event of a listener, and tries to acquire a place.
    Acquires(usize),
    /// Waits for a place; whether it was told of a release.
    Waits { listener: usize, is_told: bool },
    /// Has a place, and accepts.
    Accepts(usize),
    /// Has a client, and tries to leave the idle ones.
    Occupies,
    /// Waits for a successor; whether it was told of a release.
    Lingers { is_told: bool },
    /// Serves a connection, which may give way or not.
    Serves { gives_way: bool },
    /// Serves a connection that was evicted.
    Evicted,
    /// Serves one that was evicted and ends only once its client wants, for example because it reads no answer.
    Stalls,
}

/// The whole server, and the clients of each listener that wait.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Model {
    size: usize,
    most_workers: usize,
    counts: Counts,
    /// In order, because all workers are alike.
    workers: Vec<Worker>,
    queues: [usize; 2],
}

impl Model {
    fn new(size: usize, most_workers: usize) -> Model {
        Model {
            size,
            most_workers,
            counts: Counts {
                idle: 1,
                ..Counts::default()
            },
            workers: vec![Worker::Idle],
            queues: [0; 2],
        }
    }

    fn with(&self, at: usize, worker: Worker) -> Model {
        let mut next = self.clone();
        next.workers[at] = worker;
        next
    }

    /// Whether no worker has the event of a listener, so that the listener is armed.
    fn is_armed(&self, listener: usize) -> bool {
        !self.workers.iter().any(|worker| {
            matches!(worker, Worker::Acquires(it) | Worker::Accepts(it) | Worker::Waits { listener: it, .. }
                if *it == listener)
        })
    }

    fn tell(&mut self) {
        for worker in &mut self.workers {
            if let Worker::Waits { is_told, .. } | Worker::Lingers { is_told } = worker {
                *is_told = true;
            }
        }
    }

    fn release(&self, at: usize) -> Model {
        let mut next = self.with(at, Worker::Idle);
        next.counts.release();
        next.tell();
        next
    }

    fn evict(&mut self, waiting: usize) {
        for _ in 0..self.counts.to_evict(self.size, waiting) {
            let gives_way = Worker::Serves { gives_way: true };
            if let Some(evicted) = self.workers.iter().position(|it| *it == gives_way) {
                self.workers[evicted] = Worker::Evicted;
                self.counts.evicted += 1;
            }
        }
    }

    fn acquire(&self, at: usize, listener: usize) -> Model {
        let mut next = self.with(at, Worker::Accepts(listener));
        if next.counts.acquire(self.size).is_err() {
            let is_told = false;
            next.workers[at] = Worker::Waits { listener, is_told };
            next.evict(self.queues.iter().sum());
        }
        next
    }

    fn occupy(&self, at: usize) -> Vec<Model> {
        let occupy = |gives_way| {
            let mut next = self.with(at, Worker::Serves { gives_way });
            let workers = &mut next.workers;
            let spawn = || {
                if workers.len() == self.most_workers {
                    return Err(io::Error::from_raw_os_error(libc::EAGAIN));
                }
                workers.push(Worker::Idle);
                Ok(())
            };
            if next.counts.occupy(spawn).is_err() {
                next.workers[at] = Worker::Lingers { is_told: false };
                next.evict(self.queues.iter().sum::<usize>() + 1);
            }
            next
        };
        [true, false].map(occupy).into()
    }

    /// A worker that waits looks again after `RETRY`.
    fn look_again(&self, at: usize) -> Vec<Model> {
        let mut next = self.clone();
        next.counts.expire();
        match self.workers[at] {
            Worker::Waits { listener, .. } => vec![next.acquire(at, listener)],
            Worker::Lingers { .. } => next.occupy(at),
            _ => Vec::new(),
        }
    }

    /// What a worker may do next, but for what clients or the clock decide.
    fn steps_of(&self, at: usize) -> Vec<Model> {
        match self.workers[at] {
            Worker::Idle => {
                let ready = (0..2).filter(|it| self.queues[*it] > 0 && self.is_armed(*it));
                ready
                    .map(|it| self.with(at, Worker::Acquires(it)))
                    .collect()
            }
            Worker::Acquires(listener)
            | Worker::Waits {
                listener,
                is_told: true,
            } => {
                vec![self.acquire(at, listener)]
            }
            Worker::Accepts(listener) if self.queues[listener] == 0 => {
                let mut next = self.with(at, Worker::Idle);
                next.counts.cancel();
                next.tell();
                vec![next]
            }
            Worker::Accepts(listener) => {
                let mut next = self.with(at, Worker::Occupies);
                next.queues[listener] -= 1;
                vec![next]
            }
            Worker::Occupies | Worker::Lingers { is_told: true } => self.occupy(at),
            Worker::Evicted => vec![self.release(at)],
            Worker::Waits { .. }
            | Worker::Lingers { .. }
            | Worker::Serves { .. }
            | Worker::Stalls => Vec::new(),
        }
    }

    /// What clients and the clock may do next.
    fn events(&self) -> Vec<Model> {
        let mut events = Vec::new();
        for listener in 0..2 {
            if self.queues.iter().sum::<usize>() < MOST_QUEUED {
                let mut next = self.clone();
                next.queues[listener] += 1;
                events.push(next);
            }
            if self.queues[listener] > 0 {
                let mut next = self.clone();
                next.queues[listener] -= 1;
                events.push(next);
            }
        }
        for at in 0..self.workers.len() {
            match self.workers[at] {
                Worker::Serves { gives_way } => {
                    events.push(self.with(
                        at,
                        Worker::Serves {
                            gives_way: !gives_way,
                        },
                    ));
                    events.push(self.release(at));
                }
                Worker::Waits { is_told: false, .. } | Worker::Lingers { is_told: false } => {
                    events.extend(self.look_again(at));
                }
                Worker::Evicted => events.push(self.with(at, Worker::Stalls)),
                Worker::Stalls => events.push(self.release(at)),
                Worker::Idle => {
                    let mut next = self.clone();
                    if next.counts.retire() {
                        next.workers.remove(at);
                        events.push(next);
                    }
                }
                _ => {}
            }
        }
        events
    }

    fn check(&self, is_at_rest: bool) {
        let count = |is: fn(&Worker) -> bool| self.workers.iter().filter(|it| is(it)).count();
        let evicted = count(|it| matches!(it, Worker::Evicted | Worker::Stalls));
        let busy = count(|it| matches!(it, Worker::Serves { .. })) + evicted;
        let places = count(|it| matches!(it, Worker::Accepts(_) | Worker::Occupies));
        let lingering = count(|it| matches!(it, Worker::Lingers { .. }));
        let expected = (busy + places + lingering, self.workers.len() - busy);
        assert_eq!((self.counts.open, self.counts.idle), expected, "{self:?}");
        assert!(self.counts.open <= self.size, "{self:?}");
        // The only worker that the kernel allows serves without a successor; `Workers::maintain` helps it.
        assert!(self.counts.idle > 0 || self.most_workers == 1, "{self:?}");
        // So small a server evicts one at a time, and counts none that has ended.
        assert!(self.counts.evicted <= evicted.min(1), "{self:?}");
        if is_at_rest {
            self.check_waiting(lingering);
        }
    }

    /// Nothing happens without an event.
    fn check_waiting(&self, lingering: usize) {
        if lingering == 0 && (self.queues == [0; 2] || self.counts.idle == 0) {
            return;
        }
        let is_full = self.counts.open == self.size;
        let lacks_workers = lingering == 1 && self.workers.len() == self.most_workers;
        assert!(is_full || lacks_workers, "without need: {self:?}");
        let is_waiting = |it: &Worker| matches!(it, Worker::Waits { .. } | Worker::Lingers { .. });
        let Some(at) = self.workers.iter().position(is_waiting) else {
            panic!("for ever: {self:?}");
        };
        if self.workers.contains(&Worker::Serves { gives_way: true }) {
            let next = self.look_again(at);
            let evicts = next.iter().all(|it| it.workers.contains(&Worker::Evicted));
            assert!(evicts, "although one may give way: {self:?}");
        }
    }
}

/// All states that can be reached.
fn explore(start: Model) -> usize {
    let mut seen = HashSet::from([start.clone()]);
    let mut open = vec![start];
    while let Some(model) = open.pop() {
        let steps: Vec<_> = (0..model.workers.len())
            .flat_map(|at| model.steps_of(at))
            .collect();
        model.check(steps.is_empty());
        for mut next in steps.into_iter().chain(model.events()) {
            next.workers.sort();
            if seen.insert(next.clone()) {
                open.push(next);
            }
        }
    }
    seen.len()
}

#[test]
fn in_no_state_a_client_waits_without_need_or_for_ever() {
    let mut states = 0;
    for size in 1..=3 {
        for most_workers in 1..=5 {
            states += explore(Model::new(size, most_workers));
        }
    }
    println!("{states} states");
}

//! How the kernel's scheduler treats a worker that wakes up, because its client has sent something.
//!
//! By default such a thread preempts the running one soon, and the core switches threads twice for a request.
//! Under `SCHED_BATCH` (sched(7)) it waits until the running thread blocks, or until the timer's next tick,
//! up to 10 ms later: fewer switches, but a long tail. So most workers are `SCHED_BATCH`, and a few are not.
//! All have the shortest time slice, with which these few preempt at once; when they block again, the scheduler
//! prefers the thread that has waited longest, and so none waits long. docs/performance.md has the figures.

use std::time::Duration;

use crate::sys;

/// Workers of the first ones that preempt: those of eight connections, and the idle one. With as few, fewer switches
/// help less than a thread costs that waits for a tick.
const FIRST: usize = 9;

/// One of as many later workers preempts, too.
const SPACING: usize = 32;

/// The shortest time slice (`sched_runtime` of sched_setattr(2), since Linux 6.12; before, it is ignored).
const SHORTEST_SLICE: Duration = Duration::from_micros(100);

/// Sets the scheduling of this thread, a worker that is started beside `others`. If the kernel refuses,
/// nothing changes.
pub fn apply(others: usize) {
    let preempts = others < FIRST || others.is_multiple_of(SPACING);
    let policy = match preempts {
        true => libc::SCHED_OTHER,
        false => libc::SCHED_BATCH,
    };
    let _ = sys::set_scheduling(policy, SHORTEST_SLICE);
}

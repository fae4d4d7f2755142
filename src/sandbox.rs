//! What the server gives up before it reads a byte from the network: every capability, the way to
//! new ones, and a life longer than the guard's.

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use crate::error::Error;
use crate::sys;

/// Confines this process, whose parent is `guard`.
///
/// # Errors
/// What could not be given up.
pub fn enter(guard: Pid) -> Result<(), Error> {
    prctl::set_pdeathsig(Signal::SIGKILL)
        .map_err(|errno| Error::new("die with the guard", errno))?;
    if getppid() != guard {
        return Err(Error::numbered("die with the guard", libc::ESRCH));
    }
    prctl::set_no_new_privs().map_err(|errno| Error::new("set no_new_privs", errno))?;
    sys::drop_capabilities().map_err(|error| Error::new("drop all capabilities", error))
}

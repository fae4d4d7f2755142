//! Injects system calls into another process, with ptrace(2): a thread that waits in a system call is stopped,
//! and makes another call.

use libc::c_long;
use nix::sys::ptrace::{self, Options};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

type Registers = libc::user_regs_struct;

/// A system call; arguments that are not given are 0.
#[derive(Clone, Copy, Debug)]
pub struct Call {
    pub number: c_long,
    pub arguments: [u64; 6],
}

/// A call without arguments.
pub fn call(number: c_long) -> Call {
    call_with(number, [])
}

/// A call with its first arguments.
pub fn call_with<const N: usize>(number: c_long, some: [u64; N]) -> Call {
    let mut arguments = [0; 6];
    arguments[..N].copy_from_slice(&some);
    Call { number, arguments }
}

/// Makes a thread call; it continues with the result as that of its own call.
pub fn inject(thread: Pid, call: Call) {
    let registers = stop(thread);
    ptrace::setregs(thread, calling(registers, call)).unwrap();
    ptrace::detach(thread, None).unwrap();
}

/// Makes a thread call, and then restart its own call; returns the result.
pub fn inject_once(thread: Pid, call: Call) -> i64 {
    let registers = stop(thread);
    ptrace::setregs(thread, calling(registers, call)).unwrap();
    // Runs to the entry of the call, and to its exit.
    for _ in 0..2 {
        ptrace::syscall(thread, None).unwrap();
        wait_for_stop(thread);
    }
    let returned = result(&ptrace::getregs(thread).unwrap());
    ptrace::setregs(thread, again(registers)).unwrap();
    ptrace::detach(thread, None).unwrap();
    returned
}

fn stop(thread: Pid) -> Registers {
    ptrace::seize(thread, Options::empty()).unwrap();
    ptrace::interrupt(thread).unwrap();
    wait_for_stop(thread);
    ptrace::getregs(thread).unwrap()
}

fn wait_for_stop(thread: Pid) {
    let status = waitpid(thread, Some(WaitPidFlag::__WALL)).unwrap();
    assert!(
        matches!(
            status,
            WaitStatus::PtraceEvent(..) | WaitStatus::Stopped(..)
        ),
        "{status:?}"
    );
}

/// Registers for a call. The stopped thread's `rip` is after the `syscall` instruction, which has 2 bytes.
#[cfg(target_arch = "x86_64")]
fn calling(stopped: Registers, call: Call) -> Registers {
    let [rdi, rsi, rdx, r10, r8, r9] = call.arguments;
    Registers {
        rip: stopped.rip - 2,
        rax: call.number as u64,
        // The kernel does not restart the old call.
        orig_rax: u64::MAX,
        rdi,
        rsi,
        rdx,
        r10,
        r8,
        r9,
        ..stopped
    }
}

#[cfg(target_arch = "x86_64")]
fn again(stopped: Registers) -> Registers {
    Registers {
        rip: stopped.rip - 2,
        rax: stopped.orig_rax,
        orig_rax: u64::MAX,
        ..stopped
    }
}

#[cfg(target_arch = "x86_64")]
fn result(registers: &Registers) -> i64 {
    registers.rax.cast_signed()
}

/// Registers for a call. The kernel has already set the program counter back to the `svc` instruction
/// (`do_signal`, arch/arm64/kernel/signal.c).
#[cfg(target_arch = "aarch64")]
fn calling(stopped: Registers, call: Call) -> Registers {
    let mut registers = stopped;
    registers.regs[..6].copy_from_slice(&call.arguments);
    registers.regs[8] = call.number as u64;
    registers
}

#[cfg(target_arch = "aarch64")]
fn again(stopped: Registers) -> Registers {
    stopped
}

#[cfg(target_arch = "aarch64")]
fn result(registers: &Registers) -> i64 {
    registers.regs[0].cast_signed()
}

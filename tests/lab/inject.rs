//! Injects system calls into another process, with ptrace(2): a thread is stopped, and makes a call from an
//! instruction of the program's that is not its own next one.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;

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

/// Makes a thread call, which has to end the process.
pub fn inject(thread: Pid, call: Call) {
    let registers = stop(thread);
    ptrace::setregs(thread, calling(thread, registers, call)).unwrap();
    ptrace::detach(thread, None).unwrap();
}

/// Makes a thread call, and then restart its own call; returns the result.
pub fn inject_once(thread: Pid, call: Call) -> i64 {
    let registers = stop(thread);
    ptrace::setregs(thread, calling(thread, registers, call)).unwrap();
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

/// The instruction `syscall`
#[cfg(target_arch = "x86_64")]
const INSTRUCTION: [u8; 2] = [0x0f, 0x05];

/// The instruction `svc #0`
#[cfg(target_arch = "aarch64")]
const INSTRUCTION: [u8; 4] = 0xd400_0001_u32.to_le_bytes();

/// Address of an instruction of the process that makes a system call, and is not at `counter`.
fn another_instruction(process: Pid, counter: u64) -> u64 {
    let maps = fs::read_to_string(format!("/proc/{process}/maps")).unwrap();
    let text = maps.lines().find(|it| it.contains(" r-xp ")).unwrap();
    let (start, end) = text.split(' ').next().unwrap().split_once('-').unwrap();
    let [start, end] = [start, end].map(|it| u64::from_str_radix(it, 16).unwrap());
    let mut bytes = vec![0; (end - start) as usize];
    let memory = File::open(format!("/proc/{process}/mem")).unwrap();
    memory.read_exact_at(&mut bytes, start).unwrap();
    let instructions = bytes.chunks_exact(INSTRUCTION.len());
    (start..)
        .step_by(INSTRUCTION.len())
        .zip(instructions)
        .find_map(|(at, it)| (it == INSTRUCTION && at != counter).then_some(at))
        .unwrap()
}

/// Registers for a call.
#[cfg(target_arch = "x86_64")]
fn calling(thread: Pid, stopped: Registers, call: Call) -> Registers {
    let [rdi, rsi, rdx, r10, r8, r9] = call.arguments;
    Registers {
        rip: another_instruction(thread, stopped.rip),
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

/// Registers that restart the old call; `rip` is after its `syscall` instruction, which has 2 bytes.
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

/// Registers for a call. At the instruction of the old call the kernel might restart that one
/// (`do_signal`, arch/arm64/kernel/signal.c).
#[cfg(target_arch = "aarch64")]
fn calling(thread: Pid, stopped: Registers, call: Call) -> Registers {
    let mut registers = stopped;
    registers.pc = another_instruction(thread, stopped.pc);
    registers.regs[..6].copy_from_slice(&call.arguments);
    registers.regs[8] = call.number as u64;
    registers
}

/// Registers that restart the old call. The kernel has already set the program counter back to its
/// instruction, unless the call returned `EINTR`, which recv(2) does with a time-out: the program calls again.
#[cfg(target_arch = "aarch64")]
fn again(stopped: Registers) -> Registers {
    stopped
}

#[cfg(target_arch = "aarch64")]
fn result(registers: &Registers) -> i64 {
    registers.regs[0].cast_signed()
}

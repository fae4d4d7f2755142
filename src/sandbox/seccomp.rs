//! Compiles a list of allowed system calls into a filter for seccomp(2). Any other call kills the
//! process. Which calls are allowed is not decided here.
//!
//! A filter is a classic BPF program (linux/filter.h, linux/seccomp.h). Since Linux 5.11 the kernel does
//! not run it for calls that it allows with any arguments: it finds them at installation
//! (`seccomp_cache_prepare`, kernel/seccomp.c).

use std::mem::offset_of;

use libc::{c_long, seccomp_data, sock_filter};

/// A system call that is allowed if all the conditions hold.
#[derive(Clone, Copy, Debug)]
pub struct Allowed<'c> {
    /// The number of the call, such as `SYS_read`.
    pub call: c_long,
    /// Conditions on its arguments.
    pub conditions: &'c [Condition],
}

/// A condition on an argument: its bits in `mask` equal `value`.
#[derive(Clone, Copy, Debug)]
pub struct Condition {
    /// Number of the argument, from 0.
    pub argument: usize,
    /// The bits that are compared.
    pub mask: u64,
    /// Their required value.
    pub value: u64,
}

impl Condition {
    /// The whole argument equals `value`.
    pub const fn equals(argument: usize, value: u64) -> Condition {
        Condition {
            argument,
            mask: u64::MAX,
            value,
        }
    }
}

/// The architecture of the call numbers (`AUDIT_ARCH_…`, linux/audit.h): 64-bit, little-endian
const ARCHITECTURE: u32 = 0xc000_0000
    | if cfg!(target_arch = "x86_64") {
        libc::EM_X86_64 as u32
    } else {
        libc::EM_AARCH64 as u32
    };

const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
const AND: u32 = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
const COMPARE: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
const RETURN: u32 = libc::BPF_RET | libc::BPF_K;

/// The filter that allows these calls, and kills the process at any other.
pub fn compile(allowed: &[Allowed<'_>]) -> Vec<sock_filter> {
    let mut filter = vec![
        instruction(LOAD, offset_of!(seccomp_data, arch) as u32),
        // If equal, skips the next instruction.
        sock_filter {
            jt: 1,
            ..instruction(COMPARE, ARCHITECTURE)
        },
        instruction(RETURN, libc::SECCOMP_RET_KILL_PROCESS),
    ];
    allowed.iter().for_each(|it| filter.extend(entry(it)));
    filter.push(instruction(RETURN, libc::SECCOMP_RET_KILL_PROCESS));
    filter
}

/// The instructions for one call. A comparison that fails jumps past them, to the next call.
fn entry(allowed: &Allowed<'_>) -> Vec<sock_filter> {
    let mut entry = vec![
        instruction(LOAD, offset_of!(seccomp_data, nr) as u32),
        instruction(COMPARE, allowed.call as u32),
    ];
    for condition in allowed.conditions {
        let at = offset_of!(seccomp_data, args) + 8 * condition.argument;
        // BPF compares 32 bits at once; the lower half comes first (little-endian).
        for shift in [0, 32] {
            let mask = (condition.mask >> shift) as u32;
            if mask != 0 {
                entry.push(instruction(LOAD, at as u32 + shift / 8));
                entry.push(instruction(AND, mask));
                entry.push(instruction(COMPARE, (condition.value >> shift) as u32));
            }
        }
    }
    entry.push(instruction(RETURN, libc::SECCOMP_RET_ALLOW));
    let last = entry.len() - 1;
    for (at, instruction) in entry.iter_mut().enumerate() {
        if u32::from(instruction.code) == COMPARE {
            instruction.jf = (last - at) as u8;
        }
    }
    entry
}

const fn instruction(code: u32, k: u32) -> sock_filter {
    sock_filter {
        code: code as u16,
        jt: 0,
        jf: 0,
        k,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Runs a filter as the kernel does (Documentation/networking/filter.rst), and returns its action.
    fn decide(filter: &[sock_filter], call: &seccomp_data) -> u32 {
        let words = |at: u32| match at as usize {
            at if at == offset_of!(seccomp_data, nr) => call.nr.cast_unsigned(),
            at if at == offset_of!(seccomp_data, arch) => call.arch,
            at => {
                let offset = at - offset_of!(seccomp_data, args);
                (call.args[offset / 8] >> (8 * (offset % 8))) as u32
            }
        };
        let (mut at, mut loaded) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = filter[at];
            at += 1;
            match u32::from(code) {
                LOAD => loaded = words(k),
                AND => loaded &= k,
                COMPARE => at += usize::from(if loaded == k { jt } else { jf }),
                RETURN => return k,
                _ => panic!("an unknown instruction {code:#x}"),
            }
        }
    }

    const HIGH: u64 = 1 << 32;
    const CONDITIONS: [Condition; 2] = [
        Condition::equals(0, HIGH | 5),
        Condition {
            argument: 5,
            mask: 4,
            value: 0,
        },
    ];

    fn is_allowed(arch: u32, nr: c_long, args: [u64; 6]) -> bool {
        let call = |call, conditions| Allowed { call, conditions };
        let filter = compile(&[call(7, &[]), call(8, &CONDITIONS), call(9, &[])]);
        let data = seccomp_data {
            nr: nr as i32,
            arch,
            instruction_pointer: 0,
            args,
        };
        match decide(&filter, &data) {
            libc::SECCOMP_RET_ALLOW => true,
            libc::SECCOMP_RET_KILL_PROCESS => false,
            action => panic!("an unknown action {action:#x}"),
        }
    }

    #[test]
    fn calls_that_are_not_in_the_list_are_not_allowed() {
        let allowed: Vec<c_long> = (-1..100)
            .filter(|nr| is_allowed(ARCHITECTURE, *nr, [HIGH | 5, 0, 0, 0, 0, 0]))
            .collect();
        assert_eq!(allowed, [7, 8, 9]);
    }

    #[test]
    fn the_numbers_of_another_architecture_are_not_allowed() {
        assert!(!is_allowed(ARCHITECTURE & !0x8000_0000, 7, [0; 6]));
        assert!(!is_allowed(ARCHITECTURE ^ 1, 7, [0; 6]));
    }

    #[test]
    fn every_condition_has_to_hold_in_both_halves_of_an_argument() {
        for (first, last, allowed) in [
            (HIGH | 5, 0, true),
            (HIGH | 5, !4, true),
            (HIGH | 5, 4, false),
            (HIGH | 4, 0, false),
            (5, 0, false),
            (HIGH << 1 | 5, 0, false),
        ] {
            let args = [first, 1, 2, 3, 4, last];
            assert_eq!(
                is_allowed(ARCHITECTURE, 8, args),
                allowed,
                "{first:x} {last:x}"
            );
        }
    }
}

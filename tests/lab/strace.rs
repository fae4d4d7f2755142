//! Tampers with a process's system calls, by strace(1): fails or delays them, or stops the process.

use std::process::{Child, Command, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Namespace, PROGRAM, wait_until};

/// Tampers with a process until dropped.
pub struct Strace(Child);

impl Strace {
    /// Calls fail with an error. In their place another call runs, which the seccomp filter allows.
    pub fn failing(process: Pid, call: &str, error: &str) -> Strace {
        Strace::tampering(process, call, &format!("error={error}:syscall=gettid"))
    }

    /// Calls return `delay` µs late.
    pub fn slow(process: Pid, call: &str, delay: u32) -> Strace {
        Strace::tampering(process, call, &format!("delay_exit={delay}"))
    }

    fn tampering(process: Pid, call: &str, how: &str) -> Strace {
        let (trace, inject) = (format!("trace={call}"), format!("inject={call}:{how}"));
        let strace = Command::new("strace")
            .args(["-f", "-e", &trace, "-e", &inject, "-o", "/dev/null"])
            .args(["-p", &process.to_string()])
            .stderr(Stdio::null())
            .spawn()
            .expect("strace: run the tests with scripts/test.sh");
        let tasks = format!("/proc/{process}/task");
        wait_until("every thread is traced", || {
            std::fs::read_dir(&tasks).unwrap().all(|task| {
                let status = std::fs::read_to_string(task.unwrap().path().join("status"));
                !status.is_ok_and(|status| status.contains("TracerPid:\t0\n"))
            })
        });
        Strace(strace)
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        let strace = Pid::from_raw(self.0.id().cast_signed());
        kill(strace, Signal::SIGTERM).unwrap();
        self.0.wait().unwrap();
    }
}

/// A command that runs the program on a node. Its guard gets SIGSTOP at the `count`th call of this name; strace
/// logs that.
pub fn stopped_at(call: &str, count: usize, node: &Namespace, arguments: &[&str]) -> Command {
    let trace = format!("trace={call}");
    let inject = format!("inject={call}:signal=SIGSTOP:when={count}");
    let mut command = node.command("strace");
    // The tracer is a grandchild: the program keeps its process id. It does not follow forks.
    command.args(["-D", "-qq", "-e", &trace, "-e", &inject, PROGRAM]);
    command.args(arguments);
    command
}

//! A control group (cgroups(7)), version 2 or 1, with a memory limit. Creating one needs root.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, SystemTime};

/// A control group, removed on drop.
pub struct Cgroup {
    path: PathBuf,
    /// Whether it is of version 2.
    is_unified: bool,
}

impl Cgroup {
    /// Creates a group with a memory limit in bytes, and without swap.
    pub fn new(limit: u64) -> Cgroup {
        let root = PathBuf::from("/sys/fs/cgroup");
        let is_unified = root.join("cgroup.controllers").exists();
        let now = SystemTime::UNIX_EPOCH.elapsed().unwrap().as_nanos();
        let name = format!("tproxy-pod-test-{now}");
        let (path, limits) = match is_unified {
            true => (
                root.join(name),
                [("memory.swap.max", 0), ("memory.max", limit)],
            ),
            false => (
                root.join("memory").join(name),
                [("memory.swappiness", 0), ("memory.limit_in_bytes", limit)],
            ),
        };
        std::fs::create_dir(&path)
            .unwrap_or_else(|error| panic!("{}: {error}: run as root", path.display()));
        let cgroup = Cgroup { path, is_unified };
        for (file, value) in limits {
            cgroup.write(file, &value.to_string());
        }
        cgroup
    }

    fn write(&self, file: &str, value: &str) {
        let path = self.path.join(file);
        std::fs::write(&path, value)
            .unwrap_or_else(|error| panic!("{}: {error}: run as root", path.display()));
    }

    /// Reads a file, named as in version 2 and as in version 1.
    fn read(&self, unified: &str, old: &str) -> String {
        let file = if self.is_unified { unified } else { old };
        std::fs::read_to_string(self.path.join(file)).unwrap()
    }

    /// Its memory and its highest memory, in bytes, with what the kernel charges to it.
    pub fn memory(&self) -> [u64; 2] {
        let files = [
            self.read("memory.current", "memory.usage_in_bytes"),
            self.read("memory.peak", "memory.max_usage_in_bytes"),
        ];
        files.map(|text| text.trim().parse().unwrap())
    }

    /// The same command, run in the group.
    pub fn command(&self, inner: &Command) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", "echo 0 >\"$0\"/cgroup.procs && exec \"$@\""]);
        command.arg(&self.path).arg(inner.get_program());
        command.args(inner.get_args());
        command
    }

    /// Number of its processes that the OOM killer has killed.
    pub fn killed(&self) -> u64 {
        let events = self.read("memory.events", "memory.oom_control");
        let mut counts = events.lines().filter_map(|it| it.strip_prefix("oom_kill "));
        counts.next().unwrap().parse().unwrap()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // The last process may still be exiting.
        for _ in 0..100 {
            if std::fs::remove_dir(&self.path).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

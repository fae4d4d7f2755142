//! Scripts for `--rules`, and the two programs that load them: tproxy-pod and iptables-restore.

use std::fs::File;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{CIDRS, Daemon, Lab, PROGRAM};

/// A rule to the listener that no packet matches: the program refuses a script without a rule to it.
pub const IDLE: &str = "-A PREROUTING -i nowhere -p tcp -j TPROXY --on-ip ${ON_IP} --on-port ${ON_PORT} --tproxy-mark ${MARK}";

/// The same with rules for `--from-node`, which are left out without it.
const IDLE_FROM_NODE: &str = "-A PREROUTING -p tcp --dport 0 -j TPROXY --on-ip ${ON_IP} --on-port ${ON_PORT} --tproxy-mark ${MARK}
-A OUTPUT -p tcp --dport 0 -j CONNMARK --set-xmark ${NODE_MARK}
-A OUTPUT -p tcp --dport 0 -m connmark --mark ${NODE_MARK} -j MARK --set-xmark ${NODE_MARK}";

/// A script for `--rules`, in an unlinked file.
pub struct ScriptFile {
    path: String,
    _file: File,
}

impl ScriptFile {
    /// Writes the file.
    pub fn new(text: &str) -> ScriptFile {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let name = format!("{}/{number}.iptables", env!("CARGO_TARGET_TMPDIR"));
        let mut file = File::create(&name).unwrap();
        std::fs::remove_file(&name).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let path = format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd());
        ScriptFile { path, _file: file }
    }

    /// A path that the program can open.
    pub fn path(&self) -> &str {
        &self.path
    }
}

/// A program that loads a script.
#[derive(Clone, Copy, Debug)]
pub enum Loader {
    /// tproxy-pod, into its own table.
    Ours,
    /// iptables-restore and ip6tables-restore, from the output of `--print-rules`.
    Iptables,
}

impl Loader {
    /// Both; the reference is first.
    pub const ALL: [Loader; 2] = [Loader::Iptables, Loader::Ours];

    /// Starts the program with `options`, its bundled script loaded for both families.
    pub fn load_bundled(self, lab: &Lab, options: &[&str]) -> Daemon {
        match self {
            Loader::Ours => lab.start(options),
            Loader::Iptables => {
                let idle = ScriptFile::new(&whole(IDLE_FROM_NODE));
                let daemon = lab.start(&[options, &["--rules", idle.path()]].concat());
                restore(lab, "v4", options, "iptables-restore --noflush");
                restore(lab, "v6", options, "ip6tables-restore --noflush");
                daemon
            }
        }
    }
}

/// Lines between `*mangle` and `COMMIT`.
pub fn whole(body: &str) -> String {
    format!("*mangle\n{body}\nCOMMIT\n")
}

/// Such a script that the program starts with, whatever its lines are.
pub fn with_idle(body: &str) -> String {
    whole(&format!("{body}\n{IDLE}"))
}

/// Output of `--print-rules` for a script.
pub fn print_rules(lab: &Lab, script: &ScriptFile, family: &str) -> Output {
    let mut command = lab.node.command(PROGRAM);
    command.args([
        "--cidr",
        CIDRS,
        "--rules",
        script.path(),
        "--print-rules",
        family,
    ]);
    command.output().unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Feeds the output of `--print-rules` to a command line.
pub fn restore(lab: &Lab, family: &str, options: &[&str], command: &str) {
    let mut print = lab.node.command(PROGRAM);
    let printed = print
        .args(options)
        .args(["--print-rules", family])
        .output()
        .unwrap();
    assert!(printed.status.success(), "{}", stderr(&printed));
    let script = String::from_utf8(printed.stdout).unwrap();
    let restored = lab.node.feed(command, &script);
    assert!(restored.status.success(), "{}\n{script}", stderr(&restored));
}

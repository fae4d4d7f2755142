//! A test environment for `scripts/demo.sh`: a copy of the files that it reads, and a `PATH` with stand-ins for
//! kind, docker, podman, kubectl, sudo, ip, curl and id, which record their calls (`stand-in.sh`).

pub mod clusters;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
const STAND_IN: &str = include_str!("stand-in.sh");

/// Stand-ins of a new stage; tests add podman.
const STAND_INS: [&str; 7] = ["kind", "docker", "kubectl", "sudo", "ip", "curl", "id"];
/// Programs of this machine that the script needs.
const TOOLS: [&str; 12] = [
    "bash", "cat", "dirname", "env", "grep", "mkdir", "mktemp", "realpath", "rm", "sed", "sleep",
    "tee",
];

/// An answer of a stand-in.
#[derive(Clone)]
pub struct Answer {
    /// Prefix of the call; with a blank at the end, the whole call.
    call: String,
    /// A call that has to be recorded before.
    before: &'static str,
    /// Whether it applies to the first such call only.
    once: bool,
    status: u8,
    /// The output, or an action of `stand-in.sh`.
    text: String,
}

/// An answer to calls with this prefix.
pub fn answer(call: &str, text: &str) -> Answer {
    after("", call, text)
}

/// An answer to calls with this prefix, once another call is recorded.
pub fn after(before: &'static str, call: &str, text: &str) -> Answer {
    Answer {
        call: call.to_owned(),
        before,
        once: false,
        status: 0,
        text: text.replace('\n', "\\n"),
    }
}

/// Failure of exactly this call.
pub fn failure(call: &str) -> Answer {
    Answer {
        status: 1,
        ..answer(&format!("{call} "), "the stand-in fails\n")
    }
}

/// Failure of exactly this call, the first time.
pub fn failure_at_first(call: &str) -> Answer {
    Answer {
        once: true,
        ..failure(call)
    }
}

/// Output, exit status and calls of a run.
pub struct Run {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// Every call, in order; repeated calls of a wait are there once.
    pub calls: Vec<String>,
}

impl Run {
    /// The calls without queries that the script does not print.
    pub fn steps(&self) -> Vec<&str> {
        let hidden = [
            "--ignore-not-found",
            "get serviceaccount default",
            "docker info",
            "podman info",
            "kind get clusters",
            "id -u",
            "ip route show",
            "ip -6 route show",
        ];
        self.calls
            .iter()
            .map(String::as_str)
            .filter(|call| !hidden.iter().any(|question| call.contains(question)))
            .collect()
    }

    /// The command lines that it printed.
    pub fn shown(&self) -> Vec<&str> {
        let lines = self.stdout.lines();
        lines.filter_map(|line| line.strip_prefix("$ ")).collect()
    }

    /// Whether a call has this prefix.
    pub fn called(&self, beginning: &str) -> bool {
        self.calls.iter().any(|call| call.starts_with(beginning))
    }
}

/// A directory with the copy and the stand-ins.
pub struct Stage {
    directory: PathBuf,
    variables: Vec<(&'static str, String)>,
    answers: Vec<Answer>,
}

impl Stage {
    /// Creates a stage; its name has to be unique.
    pub fn new(name: &str, answers: Vec<Answer>) -> Stage {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("demo-{name}"));
        let _ = fs::remove_dir_all(&directory);
        fs::create_dir_all(directory.join("bin")).unwrap();
        fs::create_dir_all(directory.join("repository/scripts")).unwrap();
        fs::create_dir_all(directory.join("temporary")).unwrap();
        for file in [
            "scripts/demo.sh",
            "scripts/demo-kubernetes.sh",
            "install.yaml",
        ] {
            fs::copy(
                Path::new(REPOSITORY).join(file),
                directory.join("repository").join(file),
            )
            .unwrap();
        }
        for tool in TOOLS {
            symlink(on_path(tool), directory.join("bin").join(tool)).unwrap();
        }
        let stage = Stage {
            directory,
            variables: Vec::new(),
            answers,
        };
        STAND_INS.iter().for_each(|name| stage.add(name));
        fs::write(stage.directory.join("record"), "").unwrap();
        stage
    }

    /// Adds a stand-in to the `PATH`.
    pub fn add(&self, name: &str) {
        let path = self.directory.join("bin").join(name);
        fs::write(&path, STAND_IN).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// Removes a stand-in.
    pub fn remove(&self, name: &str) {
        fs::remove_file(self.directory.join("bin").join(name)).unwrap();
    }

    /// Sets an environment variable for later runs.
    pub fn set(mut self, name: &'static str, value: &str) -> Stage {
        self.variables.push((name, value.to_owned()));
        self
    }

    /// Adds an answer, ahead of the others.
    pub fn but(mut self, answer: Answer) -> Stage {
        self.answers.insert(0, answer);
        self
    }

    /// Runs `scripts/demo.sh` with these arguments.
    pub fn demo(&self, words: &[&str]) -> Run {
        self.run(|command| command.arg("scripts/demo.sh").args(words))
    }

    /// Runs a command line in the repository.
    pub fn run_line(&self, line: &str) -> Run {
        self.run(|command| command.args(["-c", line]))
    }

    fn run(&self, fill: impl FnOnce(&mut Command) -> &mut Command) -> Run {
        let table: String = self.answers.iter().map(line).collect();
        fs::write(self.directory.join("answers"), table).unwrap();
        let known = self.read("record").len();
        let bin = self.directory.join("bin");
        let mut command = Command::new(bin.join("bash"));
        command
            .current_dir(self.directory.join("repository"))
            .env_clear()
            .env("PATH", &bin)
            .env("STAGE", &self.directory)
            .env("TMPDIR", self.directory.join("temporary"))
            .envs(self.variables.iter().cloned());
        let Output {
            status,
            stdout,
            stderr,
        } = fill(&mut command).output().unwrap();
        let mut calls: Vec<String> = self.read("record")[known..]
            .lines()
            .map(str::to_owned)
            .collect();
        calls.dedup();
        Run {
            status: status.code(),
            stdout: String::from_utf8(stdout).unwrap(),
            stderr: String::from_utf8(stderr).unwrap(),
            calls,
        }
    }

    /// A file of the stage: `record`, `environment`, `applied`, or `repository/…`; empty if it does not exist.
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).unwrap_or_default()
    }

    /// Creates a file in the repository's `target`.
    pub fn write_target(&self, file: &str, text: &str) {
        let path = self.directory.join("repository/target").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Files in the repository's `target`.
    pub fn target(&self) -> Vec<String> {
        self.files("repository/target")
    }

    /// Files in a directory of the stage; none if it does not exist.
    pub fn files(&self, directory: &str) -> Vec<String> {
        let entries = fs::read_dir(self.directory.join(directory));
        entries.map_or(Vec::new(), |entries| {
            let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
            names.collect()
        })
    }
}

/// A line of the table that `stand-in.sh` reads.
fn line(answer: &Answer) -> String {
    let Answer {
        call,
        before,
        once,
        status,
        text,
    } = answer;
    let often = if *once { "once" } else { "" };
    format!("{call}\x1f{before}\x1f{often}\x1f{status}\x1f{text}\n")
}

fn on_path(tool: &str) -> PathBuf {
    let path = std::env::var("PATH").unwrap();
    let mut places = path.split(':').map(|place| Path::new(place).join(tool));
    places
        .find(|file| file.is_file())
        .unwrap_or_else(|| panic!("{tool} is not on PATH"))
}

pub fn assert_succeeds(run: &Run) {
    assert_eq!(run.status, Some(0), "{}{}", run.stdout, run.stderr);
}

/// Asserts that the run failed, and printed the reason and the advice.
pub fn assert_fails(run: &Run, why: &str, advice: &str) {
    assert_eq!(run.status, Some(1), "{}{}", run.stdout, run.stderr);
    let stderr = run.stderr.replace('\'', "");
    assert!(
        stderr.contains(&format!("scripts/demo.sh: {why}")),
        "{why:?}: {stderr}"
    );
    let printed = stderr
        .split_once("What to do: ")
        .unwrap_or_else(|| panic!("{stderr}"))
        .1;
    assert!(printed.contains(advice), "{advice:?}: {printed}");
}

/// Whether it printed the state of the cluster; asserts all of it, or nothing.
pub fn has_state(run: &Run) -> bool {
    let questions = [
        "get nodes,pods -A -o wide",
        "-n kube-system describe pods -l app.kubernetes.io/name=tproxy-pod",
        "-n tproxy-pod-demo describe pods",
        "-n kube-system logs -l app.kubernetes.io/name=tproxy-pod --prefix --tail=50",
    ];
    let answered = |it| format!("\n$ kubectl --request-timeout=10s {it}\nthe state\n");
    let printed = questions.map(|it| run.stderr.contains(&answered(it)));
    assert!(printed.iter().all(|it| *it == printed[0]), "{}", run.stderr);
    printed[0]
}

//! A stage for `scripts/demo.sh`: a copy of what it reads, and a `PATH` on which kind, docker, podman,
//! kubectl, sudo, ip, curl and id are stand-ins that record how they are called (`stand-in.sh`).

pub mod clusters;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const REPOSITORY: &str = env!("CARGO_MANIFEST_DIR");
const STAND_IN: &str = include_str!("stand-in.sh");

/// The programs that a stage has unless a test takes them away. Podman comes only when asked for.
const STAND_INS: [&str; 7] = ["kind", "docker", "kubectl", "sudo", "ip", "curl", "id"];
/// The programs of this machine that the script itself needs.
const TOOLS: [&str; 12] = [
    "bash", "cat", "dirname", "env", "grep", "mkdir", "mktemp", "realpath", "rm", "sed", "sleep",
    "tee",
];

/// What a stand-in answers.
#[derive(Clone)]
pub struct Answer {
    /// How the call begins; with a blank at the end, where it ends.
    call: String,
    /// What has to be on record before.
    before: &'static str,
    /// Whether only the first of these calls is answered so.
    once: bool,
    status: u8,
    /// What it prints, or what `stand-in.sh` does instead.
    text: String,
}

/// An answer to calls that begin so.
pub fn answer(call: &str, text: &str) -> Answer {
    after("", call, text)
}

/// An answer to calls that begin so, once another call is on record.
pub fn after(before: &'static str, call: &str, text: &str) -> Answer {
    Answer {
        call: call.to_owned(),
        before,
        once: false,
        status: 0,
        text: text.replace('\n', "\\n"),
    }
}

/// The failure of exactly this call.
pub fn failure(call: &str) -> Answer {
    Answer {
        status: 1,
        ..answer(&format!("{call} "), "the stand-in fails\n")
    }
}

/// The failure of exactly this call, the first time.
pub fn failure_at_first(call: &str) -> Answer {
    Answer {
        once: true,
        ..failure(call)
    }
}

/// What a run showed, and which commands it called.
pub struct Run {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: String,
    /// Every call, in order; one that is repeated at once, while something is waited for, is there once.
    pub calls: Vec<String>,
}

impl Run {
    /// The calls without the questions that the script asks for itself and does not show.
    pub fn steps(&self) -> Vec<&str> {
        let unseen = [
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
            .filter(|call| !unseen.iter().any(|question| call.contains(question)))
            .collect()
    }

    /// The command lines that it printed.
    pub fn shown(&self) -> Vec<&str> {
        let lines = self.stdout.lines();
        lines.filter_map(|line| line.strip_prefix("$ ")).collect()
    }

    /// Whether a call begins so.
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
    /// Sets up a stage, which no other has the name of.
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

    /// Puts a stand-in on the `PATH`.
    pub fn add(&self, name: &str) {
        let path = self.directory.join("bin").join(name);
        fs::write(&path, STAND_IN).unwrap();
        fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }

    /// Takes a stand-in away.
    pub fn remove(&self, name: &str) {
        fs::remove_file(self.directory.join("bin").join(name)).unwrap();
    }

    /// An environment variable for all that follows.
    pub fn set(mut self, name: &'static str, value: &str) -> Stage {
        self.variables.push((name, value.to_owned()));
        self
    }

    /// Another answer, which goes before those that are there.
    pub fn but(mut self, answer: Answer) -> Stage {
        self.answers.insert(0, answer);
        self
    }

    /// Plays `scripts/demo.sh` with these words.
    pub fn demo(&self, words: &[&str]) -> Run {
        self.run(|command| command.arg("scripts/demo.sh").args(words))
    }

    /// Types a command line in the repository, as a reader would.
    pub fn types(&self, line: &str) -> Run {
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

    /// A file of the stage: `record`, `environment`, `applied`, or `repository/…`; empty if it is not there.
    pub fn read(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).unwrap_or_default()
    }

    /// Puts a file into the repository's `target`.
    pub fn write_target(&self, file: &str, text: &str) {
        let path = self.directory.join("repository/target").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// The files of the repository's `target`.
    pub fn target(&self) -> Vec<String> {
        self.files("repository/target")
    }

    /// The files of a directory of the stage; none if it is not there.
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

/// It failed, and said why and what to do.
pub fn assert_fails(run: &Run, why: &str, advice: &str) {
    assert_eq!(run.status, Some(1), "{}{}", run.stdout, run.stderr);
    let said = run.stderr.replace('\'', "");
    assert!(
        said.contains(&format!("scripts/demo.sh: {why}")),
        "{why:?}: {said}"
    );
    let to_do = said
        .split_once("What to do: ")
        .unwrap_or_else(|| panic!("{said}"))
        .1;
    assert!(to_do.contains(advice), "{advice:?}: {to_do}");
}

/// Whether it printed the state of the cluster: all of it, or nothing.
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

//! The image: its contents, and the program run from it with install.yaml's settings. buildah builds it from
//! the Containerfile, with the output of scripts/build.sh in place of the first stage; runc starts it, as a
//! container runtime on a node does.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use crate::lab::built::{self, ARCHITECTURE};
use crate::lab::manifest::Pod;
use crate::lab::{Daemon, Lab, POD};
use serde_json::{Value, json};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Largest size of the image, compressed or unpacked, in bytes.
const LIMIT: u64 = 850_000;

/// An image in the layout of the OCI image specification.
struct Image {
    folder: PathBuf,
    manifest: Value,
}

impl Image {
    /// Builds the image of an architecture.
    fn build(architecture: &str) -> Image {
        built::binary(architecture);
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("image-{architecture}"));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir(&folder).unwrap();
        let buildah = |arguments: &[&str]| {
            let mut command = Command::new("buildah");
            command
                .args(["--storage-driver", "vfs", "--root"])
                .arg(folder.join("storage"))
                .arg("--runroot")
                .arg(folder.join("run"));
            run(command.args(arguments))
        };
        let platform = format!("linux/{architecture}");
        let context = format!("build={ROOT}/target");
        let build = [
            "build",
            "--platform",
            &platform,
            "--build-context",
            &context,
        ];
        buildah(&[&build[..], &["--tag", "localhost/image", ROOT]].concat());
        buildah(&[
            "push",
            "localhost/image",
            &format!("oci:{}", folder.display()),
        ]);
        let mut image = Image {
            folder,
            manifest: Value::Null,
        };
        let index = json_file(&image.folder.join("index.json"));
        image.manifest = json_file(&image.blob(&index["manifests"][0]));
        image
    }

    /// The image of this machine's architecture.
    fn own() -> &'static Image {
        static IMAGE: OnceLock<Image> = OnceLock::new();
        IMAGE.get_or_init(|| Image::build(ARCHITECTURE))
    }

    fn blob(&self, descriptor: &Value) -> PathBuf {
        let digest = descriptor["digest"].as_str().unwrap();
        self.folder.join("blobs").join(digest.replace(':', "/"))
    }

    fn config(&self) -> Value {
        json_file(&self.blob(&self.manifest["config"]))
    }

    /// Its only layer.
    fn layer(&self) -> &Value {
        let layers = self.manifest["layers"].as_array().unwrap();
        assert_eq!(layers.len(), 1);
        &layers[0]
    }

    /// Unpacks the image into a directory, as its root filesystem.
    fn unpack(&self, folder: &Path) {
        let layer = self.blob(self.layer());
        std::fs::create_dir_all(folder).unwrap();
        run(Command::new("tar")
            .arg("-xzf")
            .arg(layer)
            .arg("-C")
            .arg(folder));
    }
}

fn json_file(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// Runs a command, which has to succeed; returns its output.
fn run(command: &mut Command) -> String {
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("{command:?}: {error}: run the tests with scripts/test.sh"));
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {message}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn it_has_one_layer_with_one_file_and_is_small() {
    let image = Image::own();
    let layer = image.blob(image.layer());
    let files = run(Command::new("tar").args(["-tvzf"]).arg(&layer));
    let files: Vec<&str> = files.lines().collect();
    assert_eq!(files.len(), 1, "{files:?}");
    assert!(files[0].starts_with("-rwxr-xr-x 0/0 "), "{files:?}");
    assert!(files[0].ends_with(" tproxy-pod"), "{files:?}");
    let unpacked: u64 = files[0].split_whitespace().nth(2).unwrap().parse().unwrap();
    assert!((1..LIMIT).contains(&unpacked), "{unpacked}");
    let packed = [image.layer(), &image.manifest["config"]]
        .map(|descriptor| descriptor["size"].as_u64().unwrap());
    assert!(packed.iter().sum::<u64>() < LIMIT, "{packed:?}");
}

#[test]
fn it_is_the_binary_of_its_architecture_and_says_what_it_is() {
    for architecture in ["amd64", "arm64"] {
        let another;
        let image = match architecture {
            ARCHITECTURE => Image::own(),
            _ => {
                another = Image::build(architecture);
                &another
            }
        };
        let folder = image.folder.join("unpacked");
        image.unpack(&folder);
        let packed = std::fs::read(folder.join("tproxy-pod")).unwrap();
        let built = std::fs::read(built::binary(architecture)).unwrap();
        assert!(packed == built, "{architecture}");
        let config = image.config();
        assert_eq!(config["architecture"], architecture);
        assert_eq!(config["os"], "linux");
        assert_eq!(config["config"]["Entrypoint"], json!(["/tproxy-pod"]));
        let labels = &config["config"]["Labels"];
        for (label, value) in [
            ("title", env!("CARGO_PKG_NAME")),
            ("description", env!("CARGO_PKG_DESCRIPTION")),
            ("version", env!("CARGO_PKG_VERSION")),
            ("licenses", env!("CARGO_PKG_LICENSE")),
        ] {
            assert_eq!(labels[format!("org.opencontainers.image.{label}")], value);
        }
    }
}

/// A bundle for runc: the image's root filesystem, and install.yaml's container as a configuration of the OCI
/// runtime specification.
struct Bundle {
    folder: PathBuf,
    name: String,
}

impl Bundle {
    fn new(name: &str) -> Bundle {
        let image = Image::own();
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = std::fs::remove_dir_all(&folder);
        let rootfs = folder.join("rootfs");
        image.unpack(&rootfs);
        let config = container(&image.config()["config"]);
        std::fs::write(folder.join("config.json"), config.to_string()).unwrap();
        Bundle {
            folder,
            name: name.to_owned(),
        }
    }

    fn runc(&self, mut runc: Command, arguments: &[&str]) -> Command {
        runc.args(["--rootless", "true", "--root"])
            .arg(self.folder.join("state"))
            .args(arguments);
        runc
    }

    /// Process id of the container's first process.
    fn pid(&self) -> u64 {
        let state = run(&mut self.runc(Command::new("runc"), &["state", &self.name]));
        let state: Value = serde_json::from_str(&state).unwrap();
        state["pid"].as_u64().unwrap()
    }
}

/// The configuration that the kubelet and containerd derive from install.yaml. The network is the parent's, as
/// with `hostNetwork`.
fn container(image: &Value) -> Value {
    let pod = Pod::read();
    let security = &pod.container()["securityContext"];
    let mut arguments = vec![image["Entrypoint"][0].as_str().unwrap()];
    arguments.extend(pod.arguments());
    let capabilities = pod.capabilities();
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": {"uid": security["runAsUser"], "gid": 0},
            "args": arguments,
            "env": image["Env"],
            "cwd": "/",
            "noNewPrivileges": security["allowPrivilegeEscalation"] == false,
            "capabilities": {
                "bounding": capabilities,
                "effective": capabilities,
                "permitted": capabilities,
            },
        },
        "root": {"path": "rootfs", "readonly": security["readOnlyRootFilesystem"]},
        "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
        "linux": {
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "uts"}, {"type": "ipc"}],
            "seccomp": seccomp(&capabilities),
        },
    })
}

/// The default profile of container runtimes, without the calls that it allows for capabilities which the
/// container does not have.
fn seccomp(capabilities: &[String]) -> Value {
    let profile = json_file(Path::new("/usr/share/containers/seccomp.json"));
    let list = |rule: &Value, side: &str, what: &str| -> Vec<String> {
        let list = rule[side][what].as_array().cloned().unwrap_or_default();
        list.iter()
            .map(|it| it.as_str().unwrap().to_owned())
            .collect()
    };
    let applies = |rule: &&Value| {
        let has = |side, what: &str, own: &[String]| {
            let listed = list(rule, side, what);
            (!listed.is_empty()).then(|| listed.iter().any(|it| own.contains(it)))
        };
        let own = [ARCHITECTURE.to_owned()];
        has("includes", "caps", capabilities) != Some(false)
            && has("excludes", "caps", capabilities) != Some(true)
            && has("includes", "arches", &own) != Some(false)
            && has("excludes", "arches", &own) != Some(true)
    };
    let rules: Vec<Value> = profile["syscalls"]
        .as_array()
        .unwrap()
        .iter()
        .filter(applies)
        .map(|rule| {
            let parts = ["names", "action", "args", "errnoRet"];
            let set = parts.into_iter().filter(|part| !rule[part].is_null());
            set.map(|part| (part.to_owned(), rule[part].clone()))
                .collect()
        })
        .collect();
    json!({
        "defaultAction": profile["defaultAction"],
        "defaultErrnoRet": profile["defaultErrnoRet"],
        "syscalls": rules,
    })
}

/// Value of a line in `/proc/PID/status`.
fn status(pid: u64, name: &str) -> String {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .unwrap();
    line.trim_start_matches(':').trim().to_owned()
}

#[test]
fn it_intercepts_from_its_root_filesystem_with_the_privilege_of_the_manifest() {
    let lab = Lab::new();
    let bundle = Bundle::new("container");
    let folder = bundle.folder.to_str().unwrap();
    let command = lab.node.command("runc");
    let command = bundle.runc(command, &["run", "--bundle", folder, &bundle.name]);
    let mut daemon = Daemon::spawn(command);
    daemon.wait_for("Created table inet tproxy-pod, owned");
    assert!(lab.client.get(POD, "/").contains("Request received"));

    let guard = bundle.pid();
    let children = std::fs::read_to_string(format!("/proc/{guard}/task/{guard}/children"));
    let server: u64 = children.unwrap().trim().parse().unwrap();
    // CAP_NET_ADMIN is 12, CAP_NET_BIND_SERVICE 10 (linux/capability.h).
    let set = |bits: u64| format!("{bits:016x}");
    assert_eq!(status(guard, "CapBnd"), set(1 << 12 | 1 << 10));
    assert_eq!(status(guard, "CapEff"), set(1 << 12));
    assert_eq!(status(server, "CapEff"), set(0));
    for process in [guard, server] {
        assert_eq!(status(process, "NoNewPrivs"), "1");
        assert_eq!(status(process, "Seccomp"), "2", "a filter");
    }
    let mounts = std::fs::read_to_string(format!("/proc/{guard}/mountinfo")).unwrap();
    let root = mounts
        .lines()
        .find(|line| line.split(' ').nth(4) == Some("/"))
        .unwrap();
    assert!(
        root.split(' ')
            .nth(5)
            .unwrap()
            .split(',')
            .any(|option| option == "ro"),
        "{root}"
    );
    let files = std::fs::read_dir(bundle.folder.join("rootfs")).unwrap();
    let files = files.filter(|entry| entry.as_ref().unwrap().path().is_file());
    assert_eq!(files.count(), 1);

    assert_eq!(daemon.stop(), Some(0));
    assert_eq!(lab.remains(), [""; 0]);
}

#[test]
fn it_intercepts_within_50_ms_of_its_start() {
    let lab = Lab::new();
    let pod = Pod::read();
    let binary = built::binary(ARCHITECTURE);
    let mut times: Vec<Duration> = (0..20)
        .map(|_| {
            let start = Instant::now();
            let mut command = lab.node.command(&binary);
            command.args(pod.arguments());
            let mut daemon = Daemon::spawn(command);
            daemon.wait_for("Created table");
            assert!(lab.client.get(POD, "/").contains("Request received"));
            let time = start.elapsed();
            daemon.stop();
            time
        })
        .collect();
    times.sort();
    println!(
        "from start to the first answer: median {:?}, {times:?}",
        times[10]
    );
    // The minimum: a busy machine only adds to it.
    assert!(times[0] < Duration::from_millis(50), "{times:?}");
}

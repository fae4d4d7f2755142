//! install.yaml, parsed, and the schemas of Kubernetes.

use std::io::Write;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use serde_json::Value;

use super::kubelet::Probe;

/// Text of the manifest.
pub const MANIFEST: &str = include_str!("../../install.yaml");

/// Python with Kubernetes' schemas and their YAML parser, which scripts/test.sh installs.
const PYTHON: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/python/bin/python");

/// Runs Python code with an input.
pub fn python(code: &str, input: &str) -> Output {
    let mut child = Command::new(PYTHON)
        .args(["-c", code])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{PYTHON}: {error}: run the tests with scripts/test.sh"));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(input.as_bytes()).unwrap();
    drop(stdin);
    child.wait_with_output().unwrap()
}

/// Objects of a manifest.
pub fn objects(manifest: &str) -> Vec<Value> {
    let code = "import json, sys, yaml; json.dump(list(yaml.safe_load_all(sys.stdin)), sys.stdout)";
    let output = python(code, manifest);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{message}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The manifest with its optional YAML uncommented. After `#`, prose has one blank or three, YAML none or an
/// even number.
pub fn uncommented() -> String {
    let uncomment = |line: &str| {
        let (indent, comment) = line.split_at(line.len() - line.trim_start().len());
        let yaml = comment.strip_prefix('#').filter(|yaml| {
            let blanks = yaml.len() - yaml.trim_start().len();
            !yaml.is_empty() && blanks % 2 == 0
        });
        format!("{indent}{}\n", yaml.unwrap_or(comment))
    };
    MANIFEST.lines().map(uncomment).collect()
}

/// The object of a kind.
pub fn object(manifest: &str, kind: &str) -> Value {
    let objects = objects(manifest);
    let object = objects.into_iter().find(|object| object["kind"] == kind);
    object.unwrap_or_else(|| panic!("no {kind}"))
}

/// The Pod template of the manifest's DaemonSet.
pub struct Pod {
    /// Its `spec`.
    pub spec: Value,
}

impl Pod {
    /// Parses the manifest.
    pub fn read() -> Pod {
        let mut daemon_set = object(MANIFEST, "DaemonSet");
        Pod {
            spec: daemon_set["spec"]["template"]["spec"].take(),
        }
    }

    /// Its only container.
    pub fn container(&self) -> &Value {
        let containers = self.spec["containers"].as_array().unwrap();
        assert_eq!(containers.len(), 1);
        &containers[0]
    }

    /// Arguments of the program.
    pub fn arguments(&self) -> Vec<&str> {
        strings(&self.container()["args"])
    }

    /// Capabilities, by the kernel's names.
    pub fn capabilities(&self) -> Vec<String> {
        let capabilities = &self.container()["securityContext"]["capabilities"];
        assert_eq!(strings(&capabilities["drop"]), ["ALL"]);
        let added = strings(&capabilities["add"]);
        added.iter().map(|name| format!("CAP_{name}")).collect()
    }

    /// Termination grace period.
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.spec["terminationGracePeriodSeconds"].as_u64().unwrap())
    }

    /// Memory limit, in bytes.
    pub fn memory_limit(&self) -> u64 {
        let limit = self.container()["resources"]["limits"]["memory"]
            .as_str()
            .unwrap();
        limit.strip_suffix("Mi").unwrap().parse::<u64>().unwrap() << 20
    }

    /// A probe, with the defaults of Kubernetes for what it does not set.
    pub fn probe(&self, name: &str) -> Probe {
        let probe = &self.container()[name];
        let get = &probe["httpGet"];
        let port = match &get["port"] {
            Value::String(port) => self.port(port),
            port => port.as_u64().unwrap(),
        };
        let host = get["host"].as_str().unwrap();
        let number = |key: &str, default| probe.get(key).map_or(default, |it| it.as_u64().unwrap());
        Probe {
            address: format!("{host}:{port}"),
            path: get["path"].as_str().unwrap().to_owned(),
            period: Duration::from_secs(number("periodSeconds", 10)),
            timeout: Duration::from_secs(number("timeoutSeconds", 1)),
            failure_threshold: number("failureThreshold", 3).try_into().unwrap(),
        }
    }

    fn port(&self, name: &str) -> u64 {
        let ports = self.container()["ports"].as_array().unwrap();
        let port = ports.iter().find(|port| port["name"] == name).unwrap();
        port["containerPort"].as_u64().unwrap()
    }
}

/// A list of strings.
pub fn strings(list: &Value) -> Vec<&str> {
    let list = list.as_array().unwrap();
    list.iter().map(|value| value.as_str().unwrap()).collect()
}

//! install.yaml: valid for Kubernetes, in agreement with the program, and with no more privilege than needed.

use std::time::Duration;

use crate::lab::kubelet::Probe;
use crate::lab::manifest::{MANIFEST, Pod, object, objects, python, strings, uncommented};
use crate::lab::script::ScriptFile;
use crate::lab::{Daemon, Lab, POD, PROGRAM, wait_until};
use serde_json::{Value, json};
use tproxy_pod::guard::LONGEST_STOP;
use tproxy_pod::rules::template::BUNDLED;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Validates every object strictly, for the oldest and the newest minor version that the package has schemas
/// for; prints these versions and the errors.
const VALIDATE: &str = "
import sys, yaml, kubernetes_validate as schemas
versions = schemas.utils.all_versions()
objects = list(yaml.safe_load_all(sys.stdin))
for version in (versions[0], versions[-1]):
    for object in objects:
        schemas.validate(object, version, strict=True)
    print(version, len(objects))
";

fn validate(manifest: &str) -> Result<String, String> {
    let output = python(VALIDATE, manifest);
    match output.status.success() {
        true => Ok(String::from_utf8(output.stdout).unwrap()),
        false => Err(String::from_utf8(output.stderr).unwrap()),
    }
}

#[test]
fn it_is_valid_for_the_oldest_and_the_newest_kubernetes_with_and_without_its_comments() {
    for (manifest, count) in [(MANIFEST, 2), (&uncommented(), 3)] {
        let validated = validate(manifest).unwrap_or_else(|error| panic!("{error}"));
        let lines: Vec<_> = validated.lines().collect();
        assert_eq!(lines.len(), 2, "{validated}");
        assert!(
            lines
                .iter()
                .all(|line| line.ends_with(&format!(" {count}")))
        );
        assert_ne!(lines[0], lines[1], "two versions");
    }
}

#[test]
fn the_schemas_refuse_what_is_wrong() {
    for (right, wrong) in [
        ("hostNetwork: true", "hostNetwork: often"),
        ("hostNetwork: true", "hostNetworks: true"),
        ("containerPort: 1", "containerPort: one"),
        ("kind: DaemonSet", "kind: DemonSet"),
    ] {
        let manifest = MANIFEST.replacen(right, wrong, 1);
        assert_ne!(manifest, MANIFEST);
        assert!(validate(&manifest).is_err(), "{wrong}");
    }
}

#[test]
fn the_program_runs_with_its_arguments_and_answers_its_probes() {
    let lab = Lab::new();
    let pod = Pod::read();
    let mut daemon = lab.start(&pod.arguments());
    assert!(lab.client.get(POD, "/").contains("Request received"));
    for (name, path) in [
        ("startupProbe", "/readyz"),
        ("readinessProbe", "/readyz"),
        ("livenessProbe", "/healthz"),
    ] {
        let probe = pod.probe(name);
        assert_eq!(probe.path, path, "{name}");
        let get = &pod.container()[name]["httpGet"];
        assert_eq!(keys(get), ["host", "path", "port"], "{name}: plain HTTP");
        wait_until(name, || probe.succeeds(&lab.node));
    }
    assert_eq!(daemon.stop(), Some(0));
    assert!(!daemon.log().contains("z : "), "probes are not logged");
}

#[test]
fn a_server_that_hangs_is_stopped_within_15_s_and_not_for_a_pause_of_9_s() {
    let liveness = Pod::read().probe("livenessProbe");
    // The rest is for the kubelet and the guard.
    let longest = liveness.longest_failure();
    assert!(longest <= Duration::from_secs(13), "{longest:?}");
    let shortest = liveness.shortest_failure();
    assert!(shortest > Duration::from_secs(9), "{shortest:?}");
}

#[test]
fn where_only_ipv6_is_captured_the_probes_find_it_at_the_ipv6_loopback() {
    let lab = Lab::new();
    let _daemon = lab.start(&["--cidr", "fd00:10:244::/56"]);
    let pod = Pod::read();
    for name in ["startupProbe", "readinessProbe", "livenessProbe"] {
        let probe = Probe {
            address: "[::1]:1".to_owned(),
            ..pod.probe(name)
        };
        wait_until(name, || probe.succeeds(&lab.node));
    }
    assert!(lab.node.connect("127.0.0.1:1").is_err());
}

#[test]
fn its_port_is_the_nodes_and_open_on_loopback_alone() {
    let pod = Pod::read();
    let port = &pod.container()["ports"][0];
    assert_eq!(port["hostPort"], port["containerPort"]);
    let port = port["hostPort"].as_u64().unwrap();
    for name in ["startupProbe", "readinessProbe", "livenessProbe"] {
        assert_eq!(pod.probe(name).address, format!("127.0.0.1:{port}"));
    }
    assert_eq!(pod.container()["ports"][0]["hostIP"], "127.0.0.1");
}

#[test]
fn the_node_name_and_the_log_level_come_from_the_environment() {
    let lab = Lab::new();
    let pod = Pod::read();
    let environment = &pod.container()["env"];
    assert_eq!(environment[0]["name"], "NODE_NAME");
    let source = &environment[0]["valueFrom"]["fieldRef"]["fieldPath"];
    assert_eq!(source, "spec.nodeName");
    assert_eq!(environment[1], json!({"name": "RUST_LOG", "value": "info"}));
    let mut command = lab.node.command(PROGRAM);
    command
        .args(pod.arguments())
        .env("NODE_NAME", "node-7")
        .env("RUST_LOG", environment[1]["value"].as_str().unwrap());
    let daemon = Daemon::spawn(command);
    daemon.wait_for("Created table");
    assert!(lab.client.get(POD, "/").contains("\nNode: node-7\n"));
}

#[test]
fn the_rules_of_the_config_map_capture_only_what_comes_in_by_one_device() {
    let config_map = object(&uncommented(), "ConfigMap");
    let (key, rules) = config_map["data"]
        .as_object()
        .unwrap()
        .iter()
        .next()
        .unwrap();
    let rules = rules.as_str().unwrap();
    let is_kept = |line: &&str| !line.starts_with('#') && !line.starts_with("-A OUTPUT ");
    let bundled = BUNDLED.lines().filter(is_kept);
    let bundled: String = bundled.map(|line| format!("{line}\n")).collect();
    let changed = bundled.replace("-A PREROUTING ", "-A PREROUTING -i eth0 ");
    assert_eq!(
        rules, changed,
        "otherwise as the bundled ones, without OUTPUT"
    );
    let lab = Lab::new();
    lab.pod.serve(8180);
    for (device, answer) in [("eth0", "pod"), ("client", "Request received")] {
        let script = ScriptFile::new(&rules.replace("-i eth0", &format!("-i {device}")));
        let mut daemon = lab.start(&["--rules", script.path()]);
        assert!(lab.client.get(POD, "/").contains(answer), "{device}");
        assert!(lab.node.get(POD, "/").ends_with("pod"), "{device}");
        daemon.stop();
    }

    let daemon_set = object(&uncommented(), "DaemonSet");
    let spec = &daemon_set["spec"]["template"]["spec"];
    let container = &spec["containers"][0];
    let mounted = container["volumeMounts"][0]["mountPath"].as_str().unwrap();
    assert_eq!(
        mounted, "/etc/tproxy-pod",
        "not over what a runtime puts into /etc"
    );
    let argument = format!("--rules={mounted}/{key}");
    assert!(
        strings(&container["args"]).contains(&argument.as_str()),
        "{argument}"
    );
    assert_eq!(
        container["volumeMounts"][0]["name"],
        spec["volumes"][0]["name"]
    );
    let source = &spec["volumes"][0]["configMap"]["name"];
    assert_eq!(*source, config_map["metadata"]["name"]);
}

#[test]
fn the_longest_stop_fits_its_grace_period() {
    let grace = Pod::read().grace();
    assert!(grace > LONGEST_STOP, "{grace:?}");
    assert!(
        grace < 2 * LONGEST_STOP,
        "an update shall not wait for nothing: {grace:?}"
    );
}

#[test]
fn it_has_the_two_capabilities_and_no_other_privilege() {
    let pod = Pod::read();
    assert_eq!(
        pod.capabilities(),
        ["CAP_NET_ADMIN", "CAP_NET_BIND_SERVICE"]
    );
    let mut security = pod.container()["securityContext"].clone();
    security.as_object_mut().unwrap().remove("capabilities");
    let tight = json!({
        "runAsUser": 0,
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
    });
    assert_eq!(security, tight);
    let profile = json!({"seccompProfile": {"type": "RuntimeDefault"}});
    assert_eq!(pod.spec["securityContext"], profile);
}

/// Keys of an object.
fn keys(object: &Value) -> Vec<&str> {
    object
        .as_object()
        .unwrap()
        .keys()
        .map(String::as_str)
        .collect()
}

#[test]
fn it_contains_nothing_else() {
    let pod = Pod::read();
    let of_pod = [
        "automountServiceAccountToken",
        "containers",
        "dnsPolicy",
        "enableServiceLinks",
        "hostNetwork",
        "nodeSelector",
        "priorityClassName",
        "securityContext",
        "serviceAccountName",
        "terminationGracePeriodSeconds",
        "tolerations",
    ];
    assert_eq!(
        keys(&pod.spec),
        of_pod,
        "no volume, no other namespace of the host"
    );
    let of_container = [
        "args",
        "env",
        "image",
        "imagePullPolicy",
        "livenessProbe",
        "name",
        "ports",
        "readinessProbe",
        "resources",
        "securityContext",
        "startupProbe",
        "terminationMessagePolicy",
    ];
    assert_eq!(
        keys(pod.container()),
        of_container,
        "no command, no hook, no mount"
    );
}

#[test]
fn all_of_it_is_in_kube_system() {
    for object in objects(&uncommented()) {
        assert_eq!(
            object["metadata"]["namespace"], "kube-system",
            "{}",
            object["kind"]
        );
    }
}

#[test]
fn it_cannot_talk_to_the_api_server() {
    let objects = objects(MANIFEST);
    let kinds: Vec<_> = objects.iter().map(|object| &object["kind"]).collect();
    assert_eq!(
        kinds,
        ["ServiceAccount", "DaemonSet"],
        "no role, no binding"
    );
    assert_eq!(objects[0]["automountServiceAccountToken"], false);
    let spec = &Pod::read().spec;
    assert_eq!(spec["automountServiceAccountToken"], false);
    assert_eq!(spec["serviceAccountName"], objects[0]["metadata"]["name"]);
}

#[test]
fn every_object_and_pod_has_the_recommended_labels_and_the_selector_no_version() {
    let labels = json!({
        "app.kubernetes.io/name": "tproxy-pod",
        "app.kubernetes.io/instance": "tproxy-pod",
        "app.kubernetes.io/version": VERSION,
        "app.kubernetes.io/component": "interception",
    });
    for object in objects(&uncommented()) {
        assert_eq!(object["metadata"]["labels"], labels, "{}", object["kind"]);
    }
    let daemon_set = object(MANIFEST, "DaemonSet");
    let spec = &daemon_set["spec"];
    assert_eq!(spec["template"]["metadata"]["labels"], labels);
    let selector = spec["selector"]["matchLabels"].as_object().unwrap();
    assert!(selector.iter().all(|(name, value)| labels[name] == *value));
    assert!(
        !selector.contains_key("app.kubernetes.io/version"),
        "it cannot be changed"
    );
}

#[test]
fn an_update_ends_the_old_one_on_a_node_before_it_starts_the_new_one() {
    let daemon_set = object(MANIFEST, "DaemonSet");
    let strategy = &daemon_set["spec"]["updateStrategy"];
    assert_eq!(strategy["type"], "RollingUpdate");
    assert_eq!(strategy["rollingUpdate"]["maxSurge"], 0);
    let unavailable = &strategy["rollingUpdate"]["maxUnavailable"];
    assert_eq!(unavailable, "10%", "neither may be 0 where the other is");
}

#[test]
fn it_runs_on_every_linux_node_and_is_evicted_last() {
    let spec = &Pod::read().spec;
    assert_eq!(spec["tolerations"], json!([{"operator": "Exists"}]));
    assert_eq!(spec["nodeSelector"], json!({"kubernetes.io/os": "linux"}));
    assert_eq!(spec["priorityClassName"], "system-node-critical");
    assert_eq!(spec["hostNetwork"], true);
    assert_eq!(spec["dnsPolicy"], "Default");
}

#[test]
fn all_versions_agree() {
    let pod = Pod::read();
    let image = &pod.container()["image"];
    assert_eq!(*image, format!("localhost/tproxy-pod:{VERSION}"));
    let containerfile = include_str!("../../Containerfile");
    assert!(containerfile.contains(&format!("org.opencontainers.image.version=\"{VERSION}\"")));
    let tags = containerfile.matches("localhost/tproxy-pod:").count();
    let right = format!("localhost/tproxy-pod:{VERSION} ");
    assert_eq!(containerfile.matches(&right).count(), tags);
    let toolchain = include_str!("../../rust-toolchain.toml");
    let (_, channel) = toolchain.split_once("channel = \"").unwrap();
    let (channel, _) = channel.split_once('"').unwrap();
    assert!(containerfile.contains(&format!("/rust:{channel}-slim AS build\n")));
}

//! `scripts/demo.sh cluster` with stand-ins: what it adds to a cluster, and what it does not change.

use crate::stage::clusters::*;
use crate::stage::{Stage, answer, assert_fails, assert_succeeds, failure};

const MANIFEST: &str = include_str!("../../install.yaml");

#[test]
fn cluster_without_an_image_is_refused_before_anything_is_made() {
    let stage = Stage::new("no-image", on_cluster());
    let run = stage.demo(&["cluster"]);
    assert_fails(
        &run,
        "tproxy-pod is not installed here, and IMAGE is not given",
        &format!("IMAGE={IMAGE} scripts/demo.sh cluster"),
    );
    for changes in ["apply", "create", "label", " run "] {
        assert!(
            !run.calls.iter().any(|call| call.contains(changes)),
            "{:?}",
            run.calls
        );
    }
}

#[test]
fn cluster_installs_the_manifest_with_image_and_cidr_alone_changed() {
    let stage = cluster_stage("manifest").set("CIDR", "10.42.0.0/16,fd00:42::/56");
    assert_succeeds(&stage.demo(&["cluster"]));
    let expected = MANIFEST
        .replace(
            "image: localhost/tproxy-pod:0.1.0",
            &format!("image: {IMAGE}"),
        )
        .replace("--cidr=10.244.0.0/16", "--cidr=10.42.0.0/16,fd00:42::/56");
    let applied = stage.read("applied");
    assert!(applied.starts_with(&expected), "{applied}");
    assert_ne!(expected, MANIFEST);
}

#[test]
fn an_installed_tproxy_pod_is_used_without_an_image() {
    let run = installed_stage("installed").demo(&["cluster"]);
    assert_succeeds(&run);
    assert!(
        run.stdout
            .contains("It is installed already, and used as it is")
    );
    assert!(run.called(&format!("{EXEC} 10.244.1.5:8180/hello")));
}

#[test]
fn an_installed_tproxy_pod_is_not_changed_even_with_an_image() {
    let stage = installed_stage("installed-image")
        .set("IMAGE", IMAGE)
        .set("CIDR", "10.42.0.0/16");
    let run = stage.demo(&["cluster"]);
    assert_succeeds(&run);
    let about = |call: &&str| call.contains("kube-system") || call.contains("apply");
    let calls: Vec<&str> = run.steps().into_iter().filter(about).collect();
    let expected = [
        "kubectl -n kube-system rollout status daemonset/tproxy-pod --timeout=120s",
        "kubectl apply -f -",
        "kubectl -n kube-system logs -l app.kubernetes.io/name=tproxy-pod --prefix --since=1m --tail=100",
    ];
    assert_eq!(calls, expected);
    assert_eq!(stage.read("applied"), "namespace\n");
}

#[test]
fn cluster_delete_asks_for_nothing_but_what_has_the_label() {
    let run = installed_stage("cluster-delete").demo(&["cluster", "--delete"]);
    assert_succeeds(&run);
    let expected = [
        "kubectl config current-context".to_owned(),
        format!(
            "kubectl -n kube-system delete daemonsets,serviceaccounts -l {MARK} --timeout=120s"
        ),
        format!("kubectl -n tproxy-pod-demo delete pods -l {MARK} --grace-period=1 --timeout=120s"),
        format!("kubectl delete namespaces -l {MARK} --timeout=120s"),
    ];
    assert_eq!(run.calls[1..], expected, "after id -u");
}

#[test]
fn all_that_cluster_makes_has_the_label() {
    let run = cluster_stage("cluster-label").demo(&["cluster"]);
    let makes = |line: &&str| line.contains("apply -f -") || line.contains("-demo run ");
    let made: Vec<&str> = run.shown().into_iter().filter(makes).collect();
    assert_eq!(made.len(), 4, "{made:?}");
    assert!(made.iter().all(|line| line.contains(MARK)), "{made:?}");
}

#[test]
fn a_failed_delete_is_reported() {
    for (number, call) in [
        "kubectl -n kube-system delete",
        "kubectl -n tproxy-pod-demo delete",
        "kubectl delete",
    ]
    .iter()
    .enumerate()
    {
        let stage = cluster_stage(&format!("cluster-delete-{number}"));
        let whole = stage.demo(&["cluster", "--delete"]);
        let call = whole.calls.iter().find(|it| it.starts_with(call)).unwrap();
        let run = stage.but(failure(call)).demo(&["cluster", "--delete"]);
        assert_fails(&run, &format!("this failed: {call}"), "try again");
    }
}

/// A cluster of one node, so that the Pods may share a bridge.
fn single_node(name: &str) -> Stage {
    let nodes = "NAME       STATUS   ROLES    AGE   VERSION   INTERNAL-IP   EXTERNAL-IP\n\
                 worker-1   Ready    <none>   9d    v1.36.0   192.0.2.11    <none>\n";
    cluster_stage(name).but(answer("kubectl get nodes -l", nodes))
}

#[test]
fn with_one_node_the_client_is_a_pod_with_its_own_network() {
    let run = single_node("single").demo(&["cluster"]);
    assert_succeeds(&run);
    let client = format!(
        "kubectl -n tproxy-pod-demo run client --image=nginx:alpine --labels={MARK} --command -- sleep 3600"
    );
    assert!(run.calls.contains(&client), "{:?}", run.calls);
}

#[test]
fn with_several_nodes_the_client_is_on_another_that_is_ready() {
    let pod = "ADDRESS      NODE\n10.244.1.5   worker-2\n";
    let run = cluster_stage("several")
        .but(answer(GET_WEB, pod))
        .demo(&["cluster"]);
    assert_succeeds(&run);
    let client = run
        .calls
        .iter()
        .find(|call| call.contains("run client"))
        .unwrap();
    let overrides = r#"--overrides={"spec":{"hostNetwork":true,"nodeName":"worker-1"}}"#;
    assert!(client.contains(overrides), "{client}");
}

#[test]
fn where_nothing_is_captured_it_says_what_to_type_elsewhere() {
    let run = single_node("not-captured")
        .but(failure(&format!("{EXEC} 10.244.1.5:8180/hello")))
        .demo(&["cluster"]);
    let why = format!("this failed: {EXEC} 10.244.1.5:8180/hello");
    assert_fails(&run, &why, "must contain 10.244.1.5: CIDR=");
    let type_this = "sudo ip route add 10.244.1.5 via 192.0.2.11; curl 10.244.1.5:8180/hello";
    assert!(run.stderr.contains(type_this), "{}", run.stderr);
}

#[test]
fn a_network_without_an_unused_address_is_no_failure() {
    let run = cluster_stage("no-absent")
        .but(failure(&format!("{EXEC} 10.244.1.62:8180/absent")))
        .but(answer(LOGS, &log(&["/hello"])))
        .demo(&["cluster"]);
    assert_succeeds(&run);
    let said = "This cluster's network does not bring 10.244.1.62 to a node";
    assert!(run.stdout.contains(said), "{}", run.stdout);
}

#[test]
fn an_address_that_a_pod_has_is_not_taken_for_unused() {
    let taken = "kubectl get pods -A --field-selector status.podIP=10.244.1.62";
    let run = cluster_stage("taken")
        .but(answer(taken, "NAMESPACE   NAME\ndefault     other\n"))
        .but(answer(
            &format!("{EXEC} 10.244.1.61:8180/absent"),
            &echo("10.244.1.61:8180", "/absent", "192.0.2.12", "worker-1"),
        ))
        .demo(&["cluster"]);
    assert_succeeds(&run);
    assert!(run.called(&format!("{EXEC} 10.244.1.61:8180/absent")));
    assert!(!run.called(&format!("{EXEC} 10.244.1.62:8180/absent")));
}

#[test]
fn the_unused_address_is_in_the_same_quarter_of_the_last_octet() {
    let url = "10.244.1.254:8180";
    let run = cluster_stage("quarter")
        .but(answer(
            GET_WEB,
            "ADDRESS        NODE\n10.244.1.200   worker-1\n",
        ))
        .but(answer(&format!("{EXEC} 10.244.1.200 "), WELCOME))
        .but(answer(
            &format!("{EXEC} 10.244.1.200:8180/hello"),
            &echo("10.244.1.200:8180", "/hello", "192.0.2.12", "worker-1"),
        ))
        .but(answer(
            &format!("{EXEC} {url}/absent"),
            &echo(url, "/absent", "192.0.2.12", "worker-1"),
        ))
        .demo(&["cluster"]);
    assert_succeeds(&run);
    assert!(run.called(&format!("{EXEC} {url}/absent")));
}

#[test]
fn an_ipv6_pod_is_asked_in_brackets() {
    let echo = |host, target| echo(host, target, "[2001:db8::2]", "worker-1");
    let run = cluster_stage("ipv6")
        .but(answer(
            GET_WEB,
            "ADDRESS         NODE\nfd00:10:244::5   worker-1\n",
        ))
        .but(answer(&format!("{EXEC} [fd00:10:244::5] "), WELCOME))
        .but(answer(
            &format!("{EXEC} [fd00:10:244::5]:8180/hello"),
            &echo("[fd00:10:244::5]:8180", "/hello"),
        ))
        .but(answer(
            &format!("{EXEC} [fd00:10:244::ff62]:8180/absent"),
            &echo("[fd00:10:244::ff62]:8180", "/absent"),
        ))
        .demo(&["cluster"]);
    assert_succeeds(&run);
    assert!(run.called("kubectl get pods -A --field-selector status.podIP=fd00:10:244::ff62"));
    assert!(run.called(&format!("{EXEC} [fd00:10:244::ff62]:8180/absent")));
}

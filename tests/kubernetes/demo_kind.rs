//! `scripts/demo.sh kind`, and `scripts/demo.sh` without a mode, with stand-ins.

use crate::stage::clusters::*;
use crate::stage::{Answer, Stage, after, answer, assert_fails, assert_succeeds, failure};

#[test]
fn root_needs_no_sudo() {
    let stage = kind_stage("root").but(answer("id -u", "0\n"));
    stage.remove("sudo");
    let run = stage.demo(&["kind"]);
    assert_succeeds(&run);
    assert!(
        run.shown()
            .contains(&"ip route add 10.244.0.0/24 via 172.18.0.2")
    );
}

/// Nodes of kind, with their Pod CIDRs and addresses.
fn nodes(lines: &str) -> Answer {
    let heading = "POD-CIDR        ADDRESS\n";
    answer(
        "kubectl get nodes -o custom-columns",
        &format!("{heading}{lines}"),
    )
}

fn two_nodes(name: &str) -> Stage {
    kind_stage(name).but(nodes(
        "10.244.0.0/24   172.18.0.2\n10.244.1.0/24   172.18.0.3,fc00::3\n",
    ))
}

#[test]
fn each_node_gets_a_route() {
    let run = two_nodes("two-routes").demo(&["kind"]);
    assert_succeeds(&run);
    let added = |call: &&String| call.starts_with("ip route add");
    let routes: Vec<&String> = run.calls.iter().filter(added).collect();
    let expected = [
        "ip route add 10.244.0.0/24 via 172.18.0.2",
        "ip route add 10.244.1.0/24 via 172.18.0.3",
    ];
    assert_eq!(routes, expected);
}

#[test]
fn without_ip_the_advice_is_the_cluster_mode() {
    let stage = kind_stage("no-ip").but(answer("id -u", "0\n"));
    stage.remove("ip");
    let run = stage.demo(&["kind"]);
    let why = "this failed: ip route show 10.244.0.0/24";
    assert_fails(&run, why, "let a Pod ask: scripts/demo.sh cluster");
}

/// Asserts that another route to the second node's Pods ends the run before it adds any.
fn assert_fails_beside_route(name: &str, there: &str) {
    let other = answer("ip route show 10.244.1.0/24 ", there);
    let stage = two_nodes(name).but(other);
    let run = stage.demo(&["kind"]);
    let first = there.lines().next().unwrap();
    let why = format!("there is another route to 10.244.1.0/24: {first}");
    assert_fails(&run, &why, "sudo ip route del 10.244.1.0/24");
    assert!(!run.called("sudo ip") && !run.called("ip route add"));
    let after = stage.demo(&["kind", "--delete"]);
    assert_succeeds(&after);
    assert!(!after.called("sudo ip"), "{:?}", after.calls);
}

#[test]
fn a_route_by_another_way_is_neither_replaced_nor_deleted() {
    let through = "10.244.1.0/24 via 172.18.0.30 dev br-other \n";
    assert_fails_beside_route("route-through", through);
    let direct = "10.244.1.0/24 dev cni0 proto kernel scope link src 10.244.1.1 \n";
    assert_fails_beside_route("route-direct", direct);
    let second = "10.244.1.0/24 via 172.18.0.9 dev br-other metric 9 \n\
                  10.244.1.0/24 via 172.18.0.3 dev br-kind \n";
    assert_fails_beside_route("route-second", second);
}

#[test]
fn the_same_route_of_another_process_is_used_and_not_deleted() {
    let same = "10.244.0.0/24 via 172.18.0.2 dev br-kind \n";
    let stage = two_nodes("route-same")
        .but(answer(ROUTE, same))
        .but(answer("ip route del ", ""))
        .but(answer(ROUTE_AS_ADDED, "10.244.0.0/24 dev br-kind \n"))
        .but(answer(
            "ip route show 10.244.1.0/24 via 172.18.0.3 ",
            "10.244.1.0/24 dev br-kind \n",
        ));
    let run = stage.demo(&["kind"]);
    assert_succeeds(&run);
    assert!(run.called("sudo ip route add 10.244.1.0/24 via 172.18.0.3"));
    assert!(!run.called("sudo ip route add 10.244.0.0/24"));
    let run = stage.demo(&["kind", "--delete"]);
    assert_succeeds(&run);
    assert!(run.called("sudo ip route del 10.244.1.0/24 via 172.18.0.3"));
    assert!(!run.called("sudo ip route del 10.244.0.0/24"));
}

#[test]
fn an_ipv6_route_is_found_again() {
    let route = "fd00:10:244::/64 via fc00::2";
    let stage = kind_stage("route-ipv6")
        .but(nodes("fd00:10:244::/64   fc00::2\n"))
        .but(answer("ip -6 route show fd00:10:244::/64 ", ""))
        .but(after(
            "ip route add",
            "ip -6 route show fd00:10:244::/64 ",
            "fd00:10:244::/64 via fc00::2 dev br-kind \n",
        ))
        .but(after(
            "ip route add",
            "ip -6 route show fd00:10:244::/64 via fc00::2 ",
            "fd00:10:244::/64 dev br-kind \n",
        ))
        .but(answer("ip route del ", ""));
    assert!(
        stage
            .demo(&["kind"])
            .called(&format!("ip route add {route}"))
    );
    let again = stage.demo(&["kind"]);
    assert_succeeds(&again);
    assert!(!again.called("ip route add"), "{:?}", again.calls);
    let run = stage.demo(&["kind", "--delete"]);
    assert_succeeds(&run);
    assert!(run.called(&format!("ip route del {route}")));
}

#[test]
fn a_route_that_cannot_be_recorded_is_not_added() {
    let stage = kind_stage("route-unrecorded");
    stage.write_target("tproxy-pod.routes/directory", "");
    let run = stage.demo(&["kind"]);
    let why = "target/tproxy-pod.routes cannot be written";
    assert_fails(&run, why, "scripts/demo.sh cluster");
    assert!(!run.called("sudo ip route add"));
}

#[test]
fn kind_delete_finds_the_first_route_where_the_second_failed() {
    let stage = two_nodes("route-second-failed")
        .but(failure("sudo ip route add 10.244.1.0/24 via 172.18.0.3"))
        .but(answer("ip route del ", ""));
    assert_eq!(stage.demo(&["kind"]).status, Some(1));
    let run = stage.demo(&["kind", "--delete"]);
    assert_succeeds(&run);
    let first = "ip route del 10.244.0.0/24 via 172.18.0.2";
    let deleted: Vec<_> = run
        .steps()
        .into_iter()
        .filter(|it| it.starts_with("ip route"))
        .collect();
    assert_eq!(deleted, [first]);
}

#[test]
fn kind_delete_finds_the_routes_of_every_run() {
    let second = "ip route show 10.244.1.0/24 via 172.18.0.3 ";
    let stage = kind_stage("routes-of-runs").but(answer("ip route del ", ""));
    assert_succeeds(&stage.demo(&["kind"]));
    let stage = stage.but(nodes("10.244.1.0/24   172.18.0.3\n")).but(after(
        "ip route add 10.244.1.0/24",
        second,
        "10.244.1.0/24 dev br-kind \n",
    ));
    assert_succeeds(&stage.demo(&["kind"]));
    let run = stage.demo(&["kind", "--delete"]);
    assert_succeeds(&run);
    let deleted: Vec<_> = run
        .steps()
        .into_iter()
        .filter(|it| it.starts_with("ip route"))
        .collect();
    let expected = [
        "ip route del 10.244.0.0/24 via 172.18.0.2",
        "ip route del 10.244.1.0/24 via 172.18.0.3",
    ];
    assert_eq!(deleted, expected);
}

#[test]
fn no_proxy_is_asked_for_a_pod() {
    let stage = kind_stage("proxy").set("http_proxy", "http://192.0.2.1:3128");
    assert_succeeds(&stage.demo(&["kind"]));
    let environment = stage.read("environment");
    let proxied = |line: &&str| !line.ends_with("no_proxy=*");
    let calls: Vec<&str> = environment.lines().filter(proxied).collect();
    assert!(
        !calls.iter().any(|call| call.starts_with("curl")),
        "{calls:?}"
    );
    assert!(
        calls.iter().any(|call| call.starts_with("docker build")),
        "{calls:?}"
    );
}

fn podman_stage(name: &str) -> Stage {
    let stage = kind_stage(name)
        .but(failure("docker info"))
        .but(answer("podman ", ""))
        .but(answer("podman save ", "a new file"));
    stage.add("podman");
    stage
}

#[test]
fn podman_finds_no_archive_of_an_earlier_run() {
    let stage = podman_stage("podman-twice");
    stage.write_target("tproxy-pod.tar", "an earlier image");
    assert_succeeds(&stage.demo(&["kind"]));
}

#[test]
fn podman_does_what_docker_cannot() {
    let stage = podman_stage("podman");
    let run = stage.demo(&["kind"]);
    assert_succeeds(&run);
    let advised = |line: &&str| line.starts_with("export") || line.contains("podman");
    let shown: Vec<&str> = run.shown().into_iter().filter(advised).collect();
    let image = "localhost/tproxy-pod:0.1.0";
    let build = format!(
        "BUILDX_NO_DEFAULT_ATTESTATIONS=1 podman build --file Containerfile --tag {image} ."
    );
    let save = format!("podman save --output target/tproxy-pod.tar {image}");
    assert_eq!(
        shown,
        ["export KIND_EXPERIMENTAL_PROVIDER=podman", &build, &save]
    );
    let environment = stage.read("environment");
    let mut calls = environment.lines().filter(|line| line.starts_with("kind "));
    assert!(
        calls.all(|call| call.contains("provider=podman")),
        "{environment}"
    );
}

/// Files and routes after a run.
fn after_run(name: &str) -> Stage {
    let stage = kind_stage(name)
        .but(after("ip route del", ROUTE_AS_ADDED, ""))
        .but(answer("ip route del ", ""));
    assert_succeeds(&stage.demo(&["kind"]));
    stage.write_target("keep", "another's");
    stage
}

#[test]
fn kind_delete_removes_just_what_was_made() {
    let stage = after_run("kind-delete");
    let run = stage.demo(&["kind", "--delete"]);
    assert_succeeds(&run);
    let expected = [
        "sudo ip route del 10.244.0.0/24 via 172.18.0.2",
        "ip route del 10.244.0.0/24 via 172.18.0.2",
        "kind delete cluster --name tproxy-pod",
    ];
    assert_eq!(run.steps(), expected);
    assert_eq!(stage.target(), ["keep"]);
}

#[test]
fn kind_delete_succeeds_where_all_is_gone() {
    let stage = kind_stage("kind-delete-gone");
    let run = stage.demo(&["kind", "--delete"]);
    assert_succeeds(&run);
    assert_eq!(run.steps(), [""; 0]);
}

#[test]
fn kind_delete_succeeds_where_the_route_is_gone() {
    let stage = after_run("kind-delete-no-route").but(answer(ROUTE_AS_ADDED, ""));
    let run = stage.demo(&["kind", "--delete"]);
    assert_succeeds(&run);
    assert_eq!(run.steps(), ["kind delete cluster --name tproxy-pod"]);
}

#[test]
fn kind_delete_goes_on_where_the_cluster_is_gone() {
    let stage = after_run("kind-delete-rest").but(answer("kind get clusters", ""));
    let run = stage.demo(&["kind", "--delete"]);
    assert_succeeds(&run);
    assert!(run.called("sudo ip route del 10.244.0.0/24 via 172.18.0.2"));
    assert!(!run.called("kind delete"));
    assert_eq!(stage.target(), ["keep"]);
}

#[test]
fn kind_delete_goes_on_after_a_failure_and_says_what_is_left() {
    let stage = after_run("kind-delete-left")
        .but(failure("sudo ip route del 10.244.0.0/24 via 172.18.0.2"));
    let run = stage.demo(&["kind", "--delete"]);
    assert_eq!(run.status, Some(1));
    assert!(
        run.stderr
            .contains("left: route 10.244.0.0/24 via 172.18.0.2"),
        "{}",
        run.stderr
    );
    assert!(run.called("kind delete cluster --name tproxy-pod"));
    let stage = stage.but(answer(ROUTE_AS_ADDED, "10.244.0.0/24 dev br-kind\n"));
    let again = stage.demo(&["kind", "--delete"]);
    assert!(
        again.called("sudo ip route del"),
        "it has forgotten the route"
    );
}

// --- without a mode ---

/// First line of output without a mode, and whether kind was called.
fn first_line_and_kind(stage: &Stage) -> (String, bool) {
    let run = stage.demo(&[]);
    let first = run.stdout.lines().next().unwrap_or_default().to_owned();
    (first, run.called("kind create cluster"))
}

#[test]
fn without_a_mode_it_is_kind_where_all_is_there() {
    let (report, kind) = first_line_and_kind(&kind_stage("choice-kind"));
    assert_eq!(
        report,
        "scripts/demo.sh kind, because kind, kubectl and docker work here"
    );
    assert!(kind);
}

/// Asserts netns without this program; the run ends at once, as the binary does not exist.
fn assert_is_netns(name: &str, stage: Stage, missing: &str) {
    let (report, kind) = first_line_and_kind(&stage.set("BINARY", "nowhere"));
    let why = "scripts/demo.sh netns, because kind cannot run here; missing: ";
    assert_eq!(report, format!("{why}{missing}"), "{name}");
    assert!(!kind, "{name}");
}

#[test]
fn without_a_mode_it_is_netns_where_something_is_missing() {
    for program in ["kind", "kubectl"] {
        let stage = kind_stage(&format!("choice-no-{program}"));
        stage.remove(program);
        assert_is_netns(program, stage, program);
    }
    let stage = kind_stage("choice-no-engine");
    stage.remove("docker");
    let engine = "a container engine that works (docker or podman)";
    assert_is_netns("docker", stage, engine);
}

#[test]
fn without_a_mode_it_is_netns_where_the_engine_does_not_work() {
    let stage = kind_stage("choice-no-daemon").but(failure("docker info"));
    let engine = "a container engine that works ('docker info' fails)";
    assert_is_netns("docker info", stage, engine);
}

#[test]
fn netns_has_patience_too() {
    let stage = kind_stage("netns-patience")
        .but(answer("unshare ", ""))
        .set("BINARY", "install.yaml")
        .set("PATIENCE", "7");
    for program in ["nft", "nsenter", "unshare", "python3"] {
        stage.add(program);
    }
    let run = stage.demo(&["netns"]);
    assert_succeeds(&run);
    let inside = run.calls.last().unwrap();
    assert!(inside.contains(" PATIENCE=7 bash "), "{inside}");
}

#[test]
fn kind_says_what_is_missing() {
    let stage = kind_stage("kind-missing");
    stage.remove("kind");
    let run = stage.demo(&["kind"]);
    assert_fails(
        &run,
        "kind cannot run here; missing: kind",
        "scripts/demo.sh netns",
    );
}

#[test]
fn the_help_has_each_mode_and_variable() {
    let run = kind_stage("help").demo(&["--help"]);
    assert_succeeds(&run);
    let words = [
        "\n  kind ",
        "\n  cluster ",
        "\n  netns ",
        "\n  kind --delete ",
        "\n  cluster --delete ",
    ];
    let variables = [
        "\n  IMAGE ",
        "\n  CIDR ",
        "\n  WEB_IMAGE ",
        "\n  BINARY ",
        "\n  PATIENCE ",
    ];
    for word in words.iter().chain(&variables) {
        assert!(run.stdout.contains(word), "{word}");
    }
}

//! Answers of the stand-ins for a successful run, as in docs/kubernetes.md.

use super::{Answer, Stage, after, answer};

pub const IMAGE: &str = "registry.example/tproxy-pod:0.1.0";
pub const MARK: &str = "app.kubernetes.io/managed-by=tproxy-pod-demo";
pub const CURL: &str = "curl -sS --max-time 5";
pub const EXEC: &str = "kubectl -n tproxy-pod-demo exec client -- curl -sS --max-time 5";
pub const GET_WEB: &str = "kubectl -n tproxy-pod-demo get pod web -o custom-columns";
pub const LOGS: &str = "kubectl -n kube-system logs";
/// The query for any route to the node's Pods.
pub const ROUTE: &str = "ip route show 10.244.0.0/24 ";
/// The query for the route that the demo adds.
pub const ROUTE_AS_ADDED: &str = "ip route show 10.244.0.0/24 via 172.18.0.2 ";
pub const WELCOME: &str = "<!DOCTYPE html>\n<html>\n<head>\n<title>Welcome to nginx!</title>\n";

pub fn echo(host: &str, target: &str, client: &str, node: &str) -> String {
    format!(
        "Request received from {host} destination {target} : GET {target} HTTP/1.1\n\
         Client: {client}:40512\nDestination: {host}\nNode: {node}\n"
    )
}

pub fn log(targets: &[&str]) -> String {
    let line =
        |target| format!("[pod/tproxy-pod-x] INFO  Received request to {target} : client=\n");
    targets.iter().map(line).collect()
}

/// Answers about a cluster in both modes.
pub fn in_cluster() -> Vec<Answer> {
    let there = "--ignore-not-found -o name";
    let web = format!("kubectl -n tproxy-pod-demo get pod web {there}");
    let client = format!("kubectl -n tproxy-pod-demo get pod client {there}");
    let namespace = format!("kubectl -n default get namespace tproxy-pod-demo {there}");
    let daemonset = format!("kubectl -n kube-system get daemonset tproxy-pod {there}");
    let account = "kubectl -n tproxy-pod-demo get serviceaccount default";
    vec![
        after(
            "kubectl apply -f",
            &daemonset,
            "daemonset.apps/tproxy-pod\n",
        ),
        answer(&daemonset, ""),
        after(
            "kubectl create namespace",
            &namespace,
            "namespace/tproxy-pod-demo\n",
        ),
        answer(&namespace, ""),
        after("demo run web", &web, "pod/web\n"),
        answer(&web, ""),
        after("demo run client", &client, "pod/client\n"),
        answer(&client, ""),
        after("kubectl create namespace", account, "default\n"),
        answer("kubectl -n kube-system rollout ", ""),
        answer("kubectl create namespace tproxy-pod-demo ", "namespace\n"),
        answer("kubectl -n tproxy-pod-demo run ", ""),
        answer("kubectl -n tproxy-pod-demo wait ", ""),
        answer(
            "kubectl get pods -A --field-selector",
            "No resources found\n",
        ),
        answer(LOGS, &log(&["/hello", "/absent"])),
        answer("kubectl --request-timeout=10s ", "the state\n"),
        answer("sudo ", "its arguments"),
        answer("id -u", "1000\n"),
    ]
}

/// Answers as in docs/kubernetes.md: kind creates a cluster of one node.
pub fn on_kind() -> Vec<Answer> {
    let (node, client) = ("tproxy-pod-control-plane", "172.18.0.1");
    let pod = format!("ADDRESS      NODE\n10.244.0.5   {node}\n");
    let nodes = "POD-CIDR        ADDRESS\n10.244.0.0/24   172.18.0.2\n";
    let hello = echo("10.244.0.5:8180", "/hello", client, node);
    let absent = echo("10.244.0.62:8180", "/absent", client, node);
    let mut answers = vec![
        answer("docker info", ""),
        after("kind delete cluster", "kind get clusters", "tproxy-pod-2\n"),
        after("kind create cluster", "kind get clusters", "tproxy-pod\n"),
        answer("kind get clusters", "tproxy-pod-2\n"),
        answer("kind ", ""),
        answer("docker build ", ""),
        answer("docker save ", "a new file"),
        answer("kubectl config current-context", "kind-tproxy-pod\n"),
        answer("kubectl apply -f install.yaml ", ""),
        answer(GET_WEB, &pod),
        answer("kubectl get nodes -o custom-columns", nodes),
        after(
            "ip route add",
            ROUTE,
            "10.244.0.0/24 via 172.18.0.2 dev br-kind \n",
        ),
        after(
            "ip route add",
            ROUTE_AS_ADDED,
            "10.244.0.0/24 dev br-kind \n",
        ),
        answer("ip route show ", ""),
        answer("ip route add ", ""),
        answer(&format!("{CURL} 10.244.0.5 "), WELCOME),
        answer(&format!("{CURL} 10.244.0.5:8180/hello"), &hello),
        answer(&format!("{CURL} 10.244.0.62:8180/absent"), &absent),
    ];
    answers.extend(in_cluster());
    answers
}

/// Answers as in docs/kubernetes.md: tproxy-pod is not installed, and the Pod is on one of the workers.
pub fn on_cluster() -> Vec<Answer> {
    let pod = "ADDRESS      NODE\n10.244.1.5   worker-1\n";
    let ready = "Ready      <none>          9d    v1.36.0";
    let nodes = format!(
        "NAME       STATUS     ROLES           AGE   VERSION   INTERNAL-IP   EXTERNAL-IP\n\
         worker-1   {ready}   192.0.2.11    <none>\n\
         worker-2   {ready}   192.0.2.12    <none>\n\
         worker-3   NotReady   <none>          9d    v1.36.0   192.0.2.13    <none>\n"
    );
    let hello = echo("10.244.1.5:8180", "/hello", "192.0.2.12", "worker-1");
    let absent = echo("10.244.1.62:8180", "/absent", "192.0.2.12", "worker-1");
    let marked = format!("kubectl -n kube-system get daemonset -l {MARK}");
    let mut answers = vec![
        answer("kubectl config current-context", "admin@somewhere\n"),
        answer(
            "kubectl get nodes -l kubernetes.io/os=linux -o wide",
            &nodes,
        ),
        after("kubectl apply -f", &marked, "daemonset.apps/tproxy-pod\n"),
        answer(&marked, ""),
        answer("kubectl label --local -f - ", "its input"),
        answer("kubectl apply -f - ", "keep"),
        answer(GET_WEB, pod),
        answer(&format!("{EXEC} 10.244.1.5 "), WELCOME),
        answer(&format!("{EXEC} 10.244.1.5:8180/hello"), &hello),
        answer(&format!("{EXEC} 10.244.1.62:8180/absent"), &absent),
        answer("kubectl -n kube-system delete ", ""),
        answer("kubectl -n tproxy-pod-demo delete ", ""),
        answer("kubectl delete namespaces ", ""),
    ];
    answers.extend(in_cluster());
    answers
}

pub fn kind_stage(name: &str) -> Stage {
    Stage::new(name, on_kind())
}

pub fn cluster_stage(name: &str) -> Stage {
    Stage::new(name, on_cluster()).set("IMAGE", IMAGE)
}

/// With tproxy-pod already installed.
pub fn installed_stage(name: &str) -> Stage {
    let found = "kubectl -n kube-system get daemonset tproxy-pod --ignore-not-found";
    let marked = format!("kubectl -n kube-system get daemonset -l {MARK}");
    Stage::new(name, on_cluster())
        .but(answer(found, "daemonset.apps/tproxy-pod\n"))
        .but(answer(&marked, ""))
}

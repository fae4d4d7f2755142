//! `scripts/demo.sh` with stand-ins for the commands that it calls, without a cluster: its modes `kind` and
//! `cluster` do what docs/kubernetes.md documents, and report failures. `scripts/test.sh` runs `netns`.

use std::thread;

use crate::stage::clusters::*;
use crate::stage::{
    Answer, Run, Stage, answer, assert_fails, assert_succeeds, failure, failure_at_first, has_state,
};

const README: &str = include_str!("../../README.md");
const KUBERNETES: &str = include_str!("../../docs/kubernetes.md");
const MANIFEST: &str = include_str!("../../install.yaml");
const CONTAINERFILE: &str = include_str!("../../Containerfile");

// --- docs/kubernetes.md ---

/// Lines of the block with prompts in a section.
fn block(section: &str) -> Vec<&'static str> {
    let start = KUBERNETES.find(&format!("\n### {section}\n")).unwrap();
    let lines = KUBERNETES[start..]
        .lines()
        .skip_while(|line| !line.starts_with("    $ "));
    lines.map_while(|line| line.strip_prefix("    ")).collect()
}

/// Commands of the block.
fn commands(section: &str) -> Vec<&'static str> {
    let lines = block(section).into_iter();
    lines.filter_map(|line| line.strip_prefix("$ ")).collect()
}

/// Calls made by the block's commands.
fn calls_of_block(stage: &Stage, section: &str) -> Vec<String> {
    let typed = commands(section).into_iter().flat_map(|line| {
        let run = stage.run_line(line);
        assert_eq!(run.status, Some(0), "{line}: {}", run.stderr);
        run.calls
    });
    typed.collect()
}

/// Asserts that the output contains each line of the block, in order; `…` matches anything.
fn assert_shows_block(run: &Run, section: &str) {
    let mut shown = run.stdout.lines();
    for line in block(section) {
        let beginning = line.trim_end_matches('…');
        let whole = beginning.len() == line.len();
        let fits = |it: &str| it == line || (!whole && it.starts_with(beginning));
        assert!(
            shown.any(fits),
            "{line:?} is not in its place:\n{}",
            run.stdout
        );
    }
}

#[test]
fn kind_shows_the_block_of_the_readme() {
    let run = kind_stage("kind-shows").demo(&["kind"]);
    assert_succeeds(&run);
    assert_eq!(run.shown(), commands("On kind"));
    assert_shows_block(&run, "On kind");
}

#[test]
fn kind_makes_the_calls_of_the_readme() {
    let typed = calls_of_block(&kind_stage("kind-typed"), "On kind");
    let run = kind_stage("kind-played").demo(&["kind"]);
    assert_eq!(run.steps(), typed);
}

#[test]
fn cluster_shows_the_block_of_the_readme() {
    let run = cluster_stage("cluster-shows").demo(&["cluster"]);
    assert_succeeds(&run);
    assert_eq!(
        run.shown(),
        commands("On the cluster that kubectl talks to")
    );
    assert_shows_block(&run, "On the cluster that kubectl talks to");
}

#[test]
fn cluster_makes_the_calls_of_the_readme() {
    let section = "On the cluster that kubectl talks to";
    let typed = calls_of_block(&cluster_stage("cluster-typed"), section);
    let run = cluster_stage("cluster-played").demo(&["cluster"]);
    assert_eq!(run.steps(), typed);
}

#[test]
fn the_image_has_one_name_everywhere() {
    let image = concat!("localhost/tproxy-pod:", env!("CARGO_PKG_VERSION"));
    assert!(MANIFEST.contains(&format!("\n          image: {image}\n")));
    for (file, text) in [
        ("README.md", README),
        ("docs/kubernetes.md", KUBERNETES),
        ("Containerfile", CONTAINERFILE),
    ] {
        let mut names = text.split("localhost/tproxy-pod:").skip(1);
        let version = concat!(env!("CARGO_PKG_VERSION"), " ");
        assert!(text.contains(image), "{file}");
        assert!(
            names.all(|rest| rest.replace('\n', " ").starts_with(version)),
            "{file}"
        );
    }
    let run = kind_stage("one-name").demo(&["kind"]);
    assert!(run.called(&format!(
        "docker save --output target/tproxy-pod.tar {image}"
    )));
}

#[test]
fn no_temporary_file_stays() {
    let runs: [&[&str]; 4] = [
        &["kind"],
        &["kind", "--delete"],
        &["cluster"],
        &["cluster", "--delete"],
    ];
    for words in runs {
        let stage = match words[0] {
            "kind" => kind_stage("temporary-kind"),
            _ => cluster_stage("temporary-cluster"),
        };
        assert_succeeds(&stage.demo(words));
        assert_eq!(stage.files("temporary"), [""; 0], "{words:?}");
    }
    let stage = kind_stage("temporary-failure").but(failure("kubectl config current-context"));
    assert_eq!(stage.demo(&["kind"]).status, Some(1));
    assert_eq!(stage.files("temporary"), [""; 0]);
}

// --- waiting ---

#[test]
fn a_pod_that_answers_late_is_waited_for() {
    let late = failure_at_first(&format!("{CURL} 10.244.0.5"));
    assert_succeeds(&kind_stage("late-answer").but(late).demo(&["kind"]));
}

#[test]
fn a_pod_comes_after_the_service_account_of_its_namespace() {
    let account = "kubectl -n tproxy-pod-demo get serviceaccount default";
    let stage = kind_stage("late-account").but(failure_at_first(account));
    assert_succeeds(&stage.demo(&["kind"]));
    let web = "kubectl -n tproxy-pod-demo run web --image=nginx:alpine";
    let record = stage.read("record");
    let calls = record.lines().filter(|call| [account, web].contains(call));
    assert_eq!(calls.collect::<Vec<_>>(), [account, account, web]);
}

#[test]
fn it_waits_as_long_as_patience_says() {
    let never = failure(&format!("{CURL} 10.244.0.5"));
    let stage = kind_stage("patience").but(never).set("PATIENCE", "0");
    assert_eq!(stage.demo(&["kind"]).status, Some(1));
    let record = stage.read("record");
    let asked = record.lines().filter(|call| call.starts_with("curl"));
    assert_eq!(asked.count(), 1);
}

#[test]
fn a_patience_that_is_no_number_is_refused() {
    let run = kind_stage("bad-patience")
        .set("PATIENCE", "a[$(curl 192.0.2.1)]")
        .demo(&["kind"]);
    assert_eq!(run.status, Some(1));
    let why = "PATIENCE=a[$(curl 192.0.2.1)]: expected a number of seconds";
    assert!(run.stderr.contains(why), "{}", run.stderr);
    assert!(run.calls.is_empty(), "{:?}", run.calls);
}

// --- values in command lines ---

#[test]
fn a_value_that_is_no_plain_word_is_refused() {
    for (number, name) in ["IMAGE", "CIDR", "WEB_IMAGE"].into_iter().enumerate() {
        for value in [
            "a'; curl 192.0.2.1 #",
            "a; curl 192.0.2.1",
            "$(curl 192.0.2.1)",
        ] {
            let stage = cluster_stage(&format!("value-{number}")).set(name, value);
            let run = stage.demo(&["cluster"]);
            assert_eq!(run.status, Some(1), "{name}={value}");
            let why = format!("{name}={value}: expected only the characters");
            assert!(run.stderr.contains(&why), "{}", run.stderr);
            assert!(run.calls.is_empty(), "{:?}", run.calls);
        }
    }
}

#[test]
fn the_pods_are_of_web_image() {
    let image = "registry.example/nginx:1";
    for (mode, stage, pods) in [
        ("kind", kind_stage("web-kind"), 1),
        ("cluster", cluster_stage("web-cluster"), 2),
    ] {
        let run = stage.set("WEB_IMAGE", image).demo(&[mode]);
        assert_succeeds(&run);
        let runs = run.calls.iter().filter(|call| call.contains("-demo run "));
        let images: Vec<bool> = runs
            .map(|call| format!("{call} ").contains(&format!(" --image={image} ")))
            .collect();
        assert_eq!(images, vec![true; pods], "{mode}");
    }
}

// --- a second run ---

#[test]
fn a_second_run_of_kind_makes_nothing_twice() {
    let stage = kind_stage("kind-twice");
    let first = stage.demo(&["kind"]);
    let second = stage.demo(&["kind"]);
    assert_succeeds(&second);
    let creates = [
        "kind create",
        "create namespace",
        "tproxy-pod-demo run web",
        "ip route add",
    ];
    let mut expected: Vec<&str> = first.steps();
    expected.retain(|call| !creates.iter().any(|it| call.contains(it)));
    expected.insert(0, "kind export kubeconfig --name tproxy-pod");
    let applied = expected
        .iter()
        .position(|call| call.starts_with("kubectl apply"))
        .unwrap();
    let restart = "kubectl -n kube-system rollout restart daemonset/tproxy-pod";
    expected.insert(applied + 1, restart);
    assert_eq!(second.steps(), expected);
}

#[test]
fn a_second_run_of_cluster_makes_nothing_twice() {
    let stage = cluster_stage("cluster-twice");
    let first = stage.demo(&["cluster"]);
    let second = stage.demo(&["cluster"]);
    assert_succeeds(&second);
    let mut expected: Vec<&str> = first.steps();
    let from = expected
        .iter()
        .position(|call| call.contains("create namespace"))
        .unwrap();
    expected.drain(from..from + 3);
    expected.retain(|call| !call.contains("tproxy-pod-demo run"));
    assert_eq!(second.steps(), expected);
}

// --- failures ---

/// Runs a mode once for each call that it makes, and lets that call fail.
fn assert_each_failure_is_reported(mode: &str, stage: fn(&str) -> Stage, exempt: &[&str]) {
    let whole = stage(&format!("{mode}-whole")).demo(&[mode]).calls;
    let in_cluster = match mode {
        "kind" => "kubectl config current-context",
        _ => "kubectl get nodes",
    };
    let known = whole
        .iter()
        .position(|call| call.starts_with(in_cluster))
        .unwrap();
    thread::scope(|scope| {
        for (number, call) in whole.iter().enumerate() {
            // The record includes the variable; the stand-in's call does not.
            let call = call.trim_start_matches("BUILDX_NO_DEFAULT_ATTESTATIONS=1 ");
            if exempt.iter().any(|it| call.starts_with(it)) {
                continue;
            }
            scope.spawn(move || {
                let stage = stage(&format!("{mode}-fails-{number}"))
                    .but(failure(call))
                    .set("PATIENCE", "0");
                let run = stage.demo(&[mode]);
                assert_eq!(run.status, Some(1), "{call}:\n{}", run.stdout);
                let said = run.stderr.replace('\'', "");
                let (_, report) = said.split_once("scripts/demo.sh: ").unwrap();
                assert!(report.contains(call), "{call}:\n{said}");
                assert!(report.contains("What to do: "), "{call}:\n{said}");
                assert_eq!(has_state(&run), number > known, "{call}:\n{said}");
                let last = run
                    .shown()
                    .last()
                    .copied()
                    .unwrap_or_default()
                    .replace('\'', "");
                let is_later = |it: &&String| {
                    let same = it.contains(call) || (last.contains(call) && last.contains(&***it));
                    !same && !it.contains("--request-timeout")
                };
                let mut further = run.calls.iter().skip_while(|it| !it.contains(call));
                assert_eq!(further.find(is_later), None, "it goes on after {call}");
            });
        }
    });
}

#[test]
fn a_failure_of_each_command_of_kind_is_reported() {
    // If id fails, the script uses sudo.
    assert_each_failure_is_reported("kind", kind_stage, &["id -u"]);
}

#[test]
fn a_failure_of_each_command_of_cluster_is_reported() {
    let absent = format!("{EXEC} 10.244.1.62:8180/absent");
    assert_each_failure_is_reported("cluster", cluster_stage, &["id -u", &absent]);
}

#[test]
fn the_reason_and_the_end_of_the_output_come_after_the_state_of_the_cluster() {
    let apply = failure("kubectl apply -f install.yaml");
    let run = kind_stage("reason-last").but(apply).demo(&["kind"]);
    let reason =
        "scripts/demo.sh: this failed: kubectl apply -f install.yaml\n  | the stand-in fails\n";
    let (state, advice) = run.stderr.split_once(reason).unwrap();
    assert!(state.contains("--request-timeout"), "{state}");
    assert!(
        advice.starts_with("What to do: ") && advice.lines().count() == 1,
        "{advice}"
    );
}

/// Asserts that a wrong answer to one call ends the run with a report.
fn assert_refuses(name: &str, mode: &str, wrong: Answer, why: &str, advice: &str) {
    let stage = match mode {
        "kind" => kind_stage(name),
        _ => cluster_stage(name),
    };
    let run = stage.but(wrong).set("PATIENCE", "0").demo(&[mode]);
    assert_fails(&run, why, advice);
    assert!(has_state(&run), "{}", run.stderr);
}

#[test]
fn a_page_of_another_server_on_port_80_fails() {
    let page = answer(&format!("{CURL} 10.244.0.5 "), "another page\n");
    let why = "this should have shown: Welcome to nginx!";
    assert_refuses("other-page", "kind", page, why, "ip route get 10.244.0.5");
}

#[test]
fn an_answer_of_the_pod_on_port_8180_fails() {
    let page = answer(&format!("{CURL} 10.244.0.5:8180/hello"), WELCOME);
    let why = "this should have shown: Request received from 10.244.0.5:8180 destination /hello : ";
    assert_refuses("pod-answers", "kind", page, why, "scripts/demo.sh cluster");
}

#[test]
fn another_answer_at_an_address_that_no_pod_has_fails() {
    let page = answer(&format!("{CURL} 10.244.0.62:8180/absent"), WELCOME);
    let why =
        "this should have shown: Request received from 10.244.0.62:8180 destination /absent : ";
    assert_refuses(
        "absent-answers",
        "kind",
        page,
        why,
        "scripts/demo.sh cluster",
    );
}

#[test]
fn another_answer_to_the_pod_at_an_address_that_no_pod_has_fails() {
    let page = answer(&format!("{EXEC} 10.244.1.62:8180/absent"), WELCOME);
    let why =
        "this should have shown: Request received from 10.244.1.62:8180 destination /absent : ";
    assert_refuses(
        "absent-pod",
        "cluster",
        page,
        why,
        "must contain 10.244.1.5",
    );
}

#[test]
fn a_log_without_the_first_request_fails() {
    let why = "it never came to be: kubectl -n kube-system logs";
    let lines = answer(LOGS, &log(&["/absent"]));
    assert_refuses("no-hello-logged", "kind", lines, why, "log");
}

#[test]
fn a_log_without_the_second_request_fails() {
    let why = "it never came to be: kubectl -n kube-system logs";
    let lines = answer(LOGS, &log(&["/hello"]));
    assert_refuses("absent-not-logged", "kind", lines, why, "log");
}

#[test]
fn a_pod_without_an_address_fails() {
    let none = answer(GET_WEB, "ADDRESS   NODE\n<none>    <none>\n");
    let why = "this should have shown the Pods address";
    assert_refuses("no-address", "cluster", none, why, "WEB_IMAGE");
}

#[test]
fn nodes_without_pod_cidrs_fail() {
    let none = answer(
        "kubectl get nodes -o custom-columns",
        "POD-CIDR   ADDRESS\n<none>     172.18.0.2\n",
    );
    let why = "this should have shown the nodes Pod CIDRs";
    assert_refuses("no-cidr", "kind", none, why, "scripts/demo.sh cluster");
}

#[test]
fn kind_applies_nothing_to_another_cluster() {
    let other = answer("kubectl config current-context", "production\n");
    let run = kind_stage("other-context").but(other).demo(&["kind"]);
    assert_fails(&run, "kubectl does not talk to kind-tproxy-pod", "kind");
    assert!(
        !run.called("kubectl apply") && !run.called("docker build"),
        "{:?}",
        run.calls
    );
}

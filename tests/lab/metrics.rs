//! The state page and the metrics, and Prometheus' own check of their format.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use super::Namespace;

/// The program of Prometheus that checks metrics, which scripts/test.sh downloads.
const PROMTOOL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/promtool");

/// Metrics by name and labels, such as `requests_total{code="200"}`, without the prefix `tproxy_pod_`.
pub type Metrics = BTreeMap<String, f64>;

impl Namespace {
    /// The content at a target, which has to be there.
    pub fn page(&self, address: &str, target: &str) -> String {
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        let response = self.http(address).request(request);
        assert_eq!(response.status, "200 OK", "{target}");
        response.text().to_owned()
    }

    /// The metrics at an address, in a form that Prometheus accepts.
    pub fn metrics(&self, address: &str) -> Metrics {
        let text = self.page(address, "/metrics");
        check(&text);
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let samples = samples.map(|line| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            let name = name.strip_prefix("tproxy_pod_").unwrap();
            (name.to_owned(), value.parse().unwrap())
        });
        samples.collect()
    }

    /// The value of a line of the state page at an address, such as that of `Requests`.
    pub fn state(&self, address: &str, name: &str) -> String {
        let page = self.page(address, "/");
        let mut values = page
            .lines()
            .filter_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'));
        let value = values.next().map(|value| value.trim().to_owned());
        value.unwrap_or_else(|| panic!("no {name} in {page}"))
    }
}

/// Lets `promtool check metrics` check a text.
fn check(text: &str) {
    let mut child = Command::new(PROMTOOL)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{PROMTOOL}: {error}: run the tests with scripts/test.sh"));
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).unwrap();
    drop(stdin);
    let output = child.wait_with_output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8(said).unwrap();
    assert!(output.status.success() && said.is_empty(), "{said}{text}");
}

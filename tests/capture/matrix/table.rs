//! Markdown tables between two comments of docs/captured.md.

use super::Outcomes;
use super::request::Outcome;

const PAGE: &str = include_str!("../../../docs/captured.md");
const BEGIN: &str = "<!-- captured: begin -->\n";
const END: &str = "<!-- captured: end -->\n";

/// Measured and expected outcomes of a network or a kind of Service.
pub struct Row {
    pub name: &'static str,
    pub measured: Option<Outcomes>,
    /// Expected outcomes on this kernel.
    pub expected: Outcomes,
    /// Whether the kernel has every feature that the page's row assumes.
    pub whole: bool,
}

impl Row {
    /// The row in Markdown. On a kernel without the feature it is copied from the page's table.
    fn line(&self, there: &str) -> String {
        let start = format!("| {} |", self.name);
        let Some(measured) = self.measured.as_ref().filter(|_| self.whole) else {
            let line = there.lines().find(|line| line.starts_with(&start));
            return line.unwrap_or(&start).to_owned();
        };
        let cells = measured.iter().map(|cell| format!(" {} |", text(*cell)));
        start + &cells.collect::<String>()
    }
}

fn text([v4, v6]: [Outcome; 2]) -> String {
    if v4.to_string() == v6.to_string() {
        v4.to_string()
    } else {
        format!("IPv4 {v4}, IPv6 {v6}")
    }
}

/// A table of outcomes, with a column for each client.
pub fn table(asked: &str, clients: &[&str], rows: &[Row]) -> String {
    let (names, line) = (clients.join(" | "), "---|".repeat(clients.len()));
    let head = format!("| {asked}, asked by | {names} |\n|---|{line}\n");
    let there = block().split_once(&head).map_or("", |(_, there)| there);
    rows.iter()
        .fold(head, |table, row| table + &row.line(there) + "\n")
}

/// The page's text between the comments.
pub fn block() -> &'static str {
    let (_, rest) = PAGE.split_once(BEGIN).unwrap();
    rest.split_once(END).unwrap().0
}

//! `/metrics`: the numbers of the server in the text format of Prometheus, version 0.0.4: for each family of metrics
//! a line of help, its type, and its samples.

use crate::log::buffer::Buffer;
use crate::log::logger;
use crate::server::context::Context;
use crate::server::counters::{BOUNDS, Codes, Counters};
use crate::server::limit::ConnectionLimit;
use crate::server::report::{Field, LastReport};

/// The labels of the first family, up to the name of the node.
const INFO: &str = concat!("{version=\"", env!("CARGO_PKG_VERSION"), "\",node=\"");

const GAUGE: &str = "gauge";
const COUNTER: &str = "counter";

/// Appends all families.
pub fn write(text: &mut Buffer, context: &Context, limit: &ConnectionLimit) {
    write_info(text, context);
    let counters = context.counters();
    write_numbers(text, counters, limit);
    write_restored(text, context.report());
    write_durations(text, counters);
    let help = "Requests that were echoed.";
    write_codes(text, "requests_total", help, &counters.answered, 200);
    let help = "Requests that were refused.";
    write_codes(text, "refused_total", help, &counters.refused, 400);
}

fn write_info(text: &mut Buffer, context: &Context) {
    write_family(text, "info", GAUGE, "The version, and the node.");
    push_name(text, "info");
    text.push(INFO.as_bytes());
    push_value(text, context.node().unwrap_or_default());
    text.push(b"\"} 1\n");
}

/// The families that have one number each.
fn write_numbers(text: &mut Buffer, counters: &Counters, limit: &ConnectionLimit) {
    for (name, kind, help, number) in [
        (
            "connections",
            GAUGE,
            "Connections that are open.",
            limit.open() as u64,
        ),
        (
            "connections_limit",
            GAUGE,
            "Connections that can be open at once.",
            limit.size() as u64,
        ),
        (
            "connections_total",
            COUNTER,
            "Connections that were accepted.",
            counters.connections(),
        ),
        (
            "lost_total",
            COUNTER,
            "Requests that were not read or answered to their end.",
            counters.lost(),
        ),
        (
            "log_lines_lost_total",
            COUNTER,
            "Log lines that were lost because they could not be written.",
            logger::lost_lines(),
        ),
    ] {
        write_family(text, name, kind, help);
        push_name(text, name);
        push_end(text, " ", number);
    }
}

fn write_restored(text: &mut Buffer, report: &LastReport) {
    let name = "restored_total";
    let help = "Entries that another process removed, and that were restored.";
    write_family(text, name, COUNTER, help);
    for (label, field) in [
        ("{what=\"rule\"} ", Field::Rules),
        ("{what=\"route\"} ", Field::Routes),
    ] {
        push_name(text, name);
        text.push(label.as_bytes());
        report.push(field, text);
        text.push(b"\n");
    }
}

/// The histogram of durations. A bucket has the numbers of all below it, too.
fn write_durations(text: &mut Buffer, counters: &Counters) {
    let name = "request_duration_seconds";
    let help = "Time from the first byte to the last of the echo.";
    write_family(text, name, "histogram", help);
    let mut count = 0;
    let bounds = BOUNDS.iter().map(|(_, bound)| *bound).chain(["+Inf"]);
    for (bound, number) in bounds.zip(counters.durations()) {
        count += number;
        push_name(text, name);
        text.push(b"_bucket{le=\"");
        text.push(bound.as_bytes());
        push_end(text, "\"} ", count);
    }
    push_name(text, name);
    text.push(b"_sum ");
    push_seconds(text, counters.total_duration());
    text.push(b"\n");
    push_name(text, name);
    push_end(text, "_count ", count);
}

/// A counter for each status code that was counted, and for `first`, which is there from the start.
fn write_codes(text: &mut Buffer, name: &str, help: &str, codes: &Codes, first: u64) {
    write_family(text, name, COUNTER, help);
    let is_there = |(code, number): &(u64, u64)| *number > 0 || *code == first;
    for (code, number) in codes.numbers().filter(is_there) {
        push_name(text, name);
        text.push(b"{code=\"");
        text.push_number(code);
        push_end(text, "\"} ", number);
    }
}

/// The lines of help and type.
fn write_family(text: &mut Buffer, name: &str, kind: &str, help: &str) {
    for (keyword, about) in [("# HELP ", help), ("# TYPE ", kind)] {
        text.push(keyword.as_bytes());
        push_name(text, name);
        text.push(b" ");
        text.push(about.as_bytes());
        text.push(b"\n");
    }
}

/// A name of a family.
fn push_name(text: &mut Buffer, name: &str) {
    text.push(b"tproxy_pod_");
    text.push(name.as_bytes());
}

/// The end of a sample: what is left up to its value, and the value.
fn push_end(text: &mut Buffer, rest: &str, value: u64) {
    text.push(rest.as_bytes());
    text.push_number(value);
    text.push(b"\n");
}

/// A time in seconds, with its microseconds as decimals.
fn push_seconds(text: &mut Buffer, micros: u64) {
    text.push_number(micros / 1_000_000);
    // The first of seven digits becomes the decimal point.
    let start = text.len();
    text.push_number(1_000_000 + micros % 1_000_000);
    text.bytes()[start] = b'.';
}

/// The value of a label, in which backslash, quote and line feed are escaped.
fn push_value(text: &mut Buffer, value: &str) {
    for byte in value.bytes() {
        match byte {
            b'\n' => text.push(b"\\n"),
            b'\\' | b'"' => text.push(&[b'\\', byte]),
            byte => text.push(&[byte]),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::http::status::Status;

    fn written(write: impl FnOnce(&mut Buffer)) -> String {
        let mut text = Buffer::EMPTY;
        write(&mut text);
        String::from_utf8(text.bytes().to_vec()).unwrap()
    }

    #[test]
    fn the_value_of_a_label_is_escaped() {
        let value = written(|text| push_value(text, "a\\b\"c\nö"));
        assert_eq!(value, "a\\\\b\\\"c\\nö");
    }

    #[test]
    fn a_sum_has_six_decimals() {
        for (micros, expected) in [
            (0, "0.000000"),
            (1, "0.000001"),
            (1_000_000, "1.000000"),
            (61_234_567, "61.234567"),
        ] {
            assert_eq!(written(|text| push_seconds(text, micros)), expected);
        }
    }

    #[test]
    fn buckets_are_cumulative_and_the_last_is_the_count() {
        let counters = Counters::default();
        for micros in [5, 500, 600, 60_000_000] {
            counters.count_answered(Status::OK, Duration::from_micros(micros));
        }
        let text = written(|text| write_durations(text, &counters));
        assert!(text.contains("_bucket{le=\"0.001\"} 3\n"), "{text}");
        assert!(text.contains("_bucket{le=\"10\"} 3\n"), "{text}");
        assert!(text.contains("_bucket{le=\"+Inf\"} 4\n"), "{text}");
        assert!(text.ends_with("_sum 60.001105\ntproxy_pod_request_duration_seconds_count 4\n"));
    }
}

//! `/metrics`: the numbers of the server in the text format of Prometheus, version 0.0.4: for each family of metrics
//! a line of help, its type, and its samples.

use crate::log::buffer::Buffer;
use crate::log::logger;
use crate::server::context::Context;
use crate::server::counters::{BOUNDS, Codes, Counters};
use crate::server::report::Field;

/// The first family, up to the name of the node.
const INFO: &str = concat!(
    "\
# HELP tproxy_pod_info The version, and the node.
# TYPE tproxy_pod_info gauge
tproxy_pod_info{version=\"",
    env!("CARGO_PKG_VERSION"),
    "\",node=\""
);

/// The rest of the first family, and those that always have the same samples.
const FIXED: &str = "\
\"} 1
# HELP tproxy_pod_connections Connections that are open.
# TYPE tproxy_pod_connections gauge
tproxy_pod_connections $
# HELP tproxy_pod_connections_total Connections that were accepted.
# TYPE tproxy_pod_connections_total counter
tproxy_pod_connections_total $
# HELP tproxy_pod_lost_total Requests that were not read or answered to their end.
# TYPE tproxy_pod_lost_total counter
tproxy_pod_lost_total $
# HELP tproxy_pod_log_lines_lost_total Log lines that were lost because the log was not read.
# TYPE tproxy_pod_log_lines_lost_total counter
tproxy_pod_log_lines_lost_total $
# HELP tproxy_pod_restored_total Entries that another process removed, and that were restored.
# TYPE tproxy_pod_restored_total counter
tproxy_pod_restored_total{what=\"rule\"} ";

/// The beginning of the family of durations.
const DURATION: &str = "
# HELP tproxy_pod_request_duration_seconds Time from the first byte to the last of the echo.
# TYPE tproxy_pod_request_duration_seconds histogram
";

/// Appends all families; `open` connections are open.
pub fn write(text: &mut Buffer, context: &Context, open: u64) {
    let (counters, report) = (context.counters(), context.report());
    text.push(INFO.as_bytes());
    push_value(text, context.node().unwrap_or_default());
    let numbers = [
        open,
        counters.connections(),
        counters.lost(),
        logger::lost_lines(),
    ];
    text.push_filled(FIXED, &numbers);
    report.push(Field::Rules, text);
    text.push(b"\ntproxy_pod_restored_total{what=\"route\"} ");
    report.push(Field::Routes, text);
    text.push(DURATION.as_bytes());
    write_durations(text, counters);
    write_codes(
        text,
        "tproxy_pod_requests_total",
        " Requests that were echoed.\n",
        &counters.answered,
        200,
    );
    write_codes(
        text,
        "tproxy_pod_refused_total",
        " Requests that were refused.\n",
        &counters.refused,
        400,
    );
}

/// The histogram of durations. A bucket has the numbers of all below it, too.
fn write_durations(text: &mut Buffer, counters: &Counters) {
    let mut count = 0;
    let bounds = BOUNDS.iter().map(|(_, bound)| *bound).chain(["+Inf"]);
    for (bound, number) in bounds.zip(counters.durations()) {
        count += number;
        text.push(b"tproxy_pod_request_duration_seconds_bucket{le=\"");
        text.push(bound.as_bytes());
        text.push_filled("\"} $\n", &[count]);
    }
    text.push(b"tproxy_pod_request_duration_seconds_sum ");
    push_seconds(text, counters.total_duration());
    text.push_filled("\ntproxy_pod_request_duration_seconds_count $\n", &[count]);
}

/// A counter for each status code that was counted, and for `least`, which is always there.
fn write_codes(text: &mut Buffer, name: &str, help: &str, codes: &Codes, least: u64) {
    for part in ["# HELP ", name, help, "# TYPE ", name, " counter\n"] {
        text.push(part.as_bytes());
    }
    codes.push(text, name, "{code=\"$\"} $\n", least);
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

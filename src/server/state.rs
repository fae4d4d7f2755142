//! `/` on the listener itself: the state of the program, for people. Each line is a name and a value.

use crate::log::buffer::Buffer;
use crate::log::logger;
use crate::server::context::Context;
use crate::server::counters::Codes;
use crate::server::limit::ConnectionLimit;
use crate::server::report::Field;

const TITLE: &str = concat!("tproxy-pod ", env!("CARGO_PKG_VERSION"), "\n");

/// The column of the values.
const COLUMN: usize = 20;

/// Appends the page.
pub fn write(text: &mut Buffer, context: &Context, limit: &ConnectionLimit) {
    let report = context.report();
    text.push(TITLE.as_bytes());
    push_name(text, "State");
    report.push_readiness(text);
    push_name(text, "Since");
    context.started().push_rfc3339(text);
    write_setup(text, context);
    push_name(text, "Bridges");
    if report.push(Field::Bridges, text) {
        text.push(b"none");
    }
    push_name(text, "Rules restored");
    report.push(Field::Rules, text);
    push_name(text, "Routes restored");
    report.push(Field::Routes, text);
    write_numbers(text, context, limit);
    text.push(b"\n");
}

/// What the program was started with.
fn write_setup(text: &mut Buffer, context: &Context) {
    let config = context.config();
    for (name, value) in [
        ("Node", context.node().unwrap_or("-")),
        ("Capturing", &config.captured),
        (
            "From the node",
            match config.captures_output {
                true => "captured",
                false => "not captured",
            },
        ),
        (
            "Table",
            match config.is_owned {
                true => "owned: the kernel removes it with this process",
                false => "not owned (before Linux 5.12): SIGKILL would leave it",
            },
        ),
    ] {
        push_name(text, name);
        text.push(value.as_bytes());
    }
}

fn write_numbers(text: &mut Buffer, context: &Context, limit: &ConnectionLimit) {
    let (counters, directives) = (context.counters(), context.directives());
    push_number(text, "Status of echoes", directives.status.code().into());
    push_number(text, "Delay of echoes", directives.delay.as_millis() as u64);
    text.push(b" ms");
    for (name, number) in [
        ("Log lines lost", logger::lost_lines()),
        ("Connections", limit.open() as u64),
        ("  at most", limit.size() as u64),
        ("  so far", counters.connections()),
        ("Lost", counters.lost()),
    ] {
        push_number(text, name, number);
    }
    write_codes(text, "Requests", &counters.answered);
    write_codes(text, "Refused", &counters.refused);
}

/// The sum over all codes, and a line for each that was counted.
fn write_codes(text: &mut Buffer, name: &str, codes: &Codes) {
    push_number(text, name, codes.total());
    for (code, number) in codes.numbers().filter(|(_, number)| *number > 0) {
        text.push(b"\n  ");
        text.push_number(code);
        text.push(b":              ");
        text.push_number(number);
    }
}

fn push_number(text: &mut Buffer, name: &str, number: u64) {
    push_name(text, name);
    text.push_number(number);
}

/// Begins a line with its name.
fn push_name(text: &mut Buffer, name: &str) {
    text.push(b"\n");
    text.push(name.as_bytes());
    text.push(b":");
    for _ in name.len() + 1..COLUMN {
        text.push(b" ");
    }
}

//! `/` on the listener itself: the state of the program, for people. Each line is a name and a value.

use crate::log::buffer::Buffer;
use crate::log::logger;
use crate::server::context::Context;
use crate::server::report::Field;

const TITLE: &str = concat!(
    "tproxy-pod ",
    env!("CARGO_PKG_VERSION"),
    "\n\nState:              "
);

const NUMBERS: &str = "
Status of echoes:   $
Delay of echoes:    $ ms
Log lines lost:     $
Connections:        $
  at most:          $
  so far:           $
Lost:               $
";

/// Appends the page; `open` connections are open, of `limit` at most.
pub fn write(text: &mut Buffer, context: &Context, open: u64, limit: u64) {
    let report = context.report();
    text.push(TITLE.as_bytes());
    report.push_readiness(text);
    text.push(b"\nSince:              ");
    context.started().push_rfc3339(text);
    write_setup(text, context);
    text.push(b"\nBridges:            ");
    if report.push(Field::Bridges, text) {
        text.push(b"none");
    }
    text.push(b"\nRules restored:     ");
    report.push(Field::Rules, text);
    text.push(b"\nRoutes restored:    ");
    report.push(Field::Routes, text);
    write_numbers(text, context, open, limit);
}

/// What the program was started with.
fn write_setup(text: &mut Buffer, context: &Context) {
    let config = context.config();
    for part in [
        "\nNode:               ",
        context.node().unwrap_or("-"),
        "\nCapturing:          ",
        &config.captured,
        "\nFrom the node:      ",
        match config.captures_output {
            true => "captured",
            false => "not captured",
        },
        "\nTable:              ",
        match config.is_owned {
            true => "owned: the kernel removes it with this process",
            false => "not owned (before Linux 5.12): SIGKILL would leave it",
        },
    ] {
        text.push(part.as_bytes());
    }
}

fn write_numbers(text: &mut Buffer, context: &Context, open: u64, limit: u64) {
    let (counters, directives) = (context.counters(), context.directives());
    let numbers = [
        u64::from(directives.status.code()),
        directives.delay.as_millis() as u64,
        logger::lost_lines(),
        open,
        limit,
        counters.connections(),
        counters.lost(),
    ];
    text.push_filled(NUMBERS, &numbers);
    for (name, codes) in [
        ("Requests:           $\n", &counters.answered),
        ("Refused:            $\n", &counters.refused),
    ] {
        text.push_filled(name, &[codes.total()]);
        codes.push(text, "", "  $:              $\n", u64::MAX);
    }
}

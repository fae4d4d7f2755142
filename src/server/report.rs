//! What the guard reports of the interception, for `/readyz`, the state page and the metrics. Only the guard knows
//! it, and tells the server over the control socket: a line for each change. The end of the stream requests the
//! stop.
//!
//! Nothing is sent back: a server that hangs reads no line, and must not hold up the guard. The server shows the
//! fields of a line as they are.

use std::sync::Mutex;

use crate::lock::unpoisoned;
use crate::log::buffer::Buffer;

/// Why the program is not ready until the guard has said anything.
const NOT_INSTALLED: &str = "the rules are not installed yet";

/// Why the program is not ready any more, from the stop signal on.
pub const STOPPING: &str = "stopping";

/// Most bytes of a text in a line. A line is short: the kernel has to send it whole or not at all.
const LONGEST_TEXT: usize = 1000;

/// Numbers of rules and routes that another process removed, and that the guard restored.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Restored {
    /// Rules of the routing policy.
    pub rules: u64,
    /// Routes.
    pub routes: u64,
}

/// The line that tells the server all fields, each after a tab but the first. `reason` is why the program is not
/// ready, or empty, and `bridges` the names of the bridges, or why there are no rules for them.
pub fn line(restored: Restored, bridges: &[u8], reason: &[u8]) -> Vec<u8> {
    let mut line = Buffer::EMPTY;
    line.push_number(restored.rules);
    line.push(b"\t");
    line.push_number(restored.routes);
    for text in [bridges, reason] {
        line.push(b"\t");
        for byte in &text[..text.len().min(LONGEST_TEXT)] {
            if !byte.is_ascii_control() {
                line.push(&[*byte]);
            }
        }
    }
    line.push(b"\n");
    line.bytes().to_vec()
}

/// A field of a line, by its place.
#[derive(Clone, Copy, Debug)]
pub enum Field {
    /// The number of restored rules.
    Rules,
    /// The number of restored routes.
    Routes,
    /// The names of the bridges, or why there are no rules for them.
    Bridges,
    /// Why the program is not ready; empty if it is.
    Reason,
}

/// The last line, without its end.
#[derive(Debug)]
pub struct LastReport(Mutex<Vec<u8>>);

impl Default for LastReport {
    /// The state at the start: not ready.
    fn default() -> LastReport {
        let line = line(Restored::default(), b"", NOT_INSTALLED.as_bytes());
        LastReport(Mutex::new(line.trim_ascii_end().to_vec()))
    }
}

impl LastReport {
    /// Appends a field to a text; returns whether it is empty.
    pub fn push(&self, field: Field, text: &mut Buffer) -> bool {
        let line = unpoisoned(self.0.lock());
        let mut fields = line.split(|byte| *byte == b'\t');
        let field = fields.nth(field as usize).unwrap_or_default();
        text.push(field);
        field.is_empty()
    }

    /// Appends `ready`, or `not ready` and why; returns whether it is ready.
    pub fn push_readiness(&self, text: &mut Buffer) -> bool {
        let start = text.len();
        text.push(b"not ready: ");
        let is_ready = self.push(Field::Reason, text);
        if is_ready {
            text.resize(start);
            text.push(b"ready");
        }
        is_ready
    }

    /// Records that a stop has begun.
    pub fn set_stopping(&self) {
        let mut line = unpoisoned(self.0.lock());
        let end = line.iter().rposition(|byte| *byte == b'\t');
        line.truncate(end.map_or(0, |end| end + 1));
        line.extend_from_slice(STOPPING.as_bytes());
    }
}

/// Reads the guard's lines, in pieces of any length.
#[derive(Debug, Default)]
pub struct LineReader {
    /// The line that is not complete yet.
    begun: Vec<u8>,
}

impl LineReader {
    /// Reads the next bytes. What the last complete line says holds from now on.
    pub fn read(&mut self, bytes: &[u8], last: &LastReport) {
        for byte in bytes {
            match byte {
                b'\n' => {
                    std::mem::swap(&mut self.begun, &mut *unpoisoned(last.0.lock()));
                    self.begun.clear();
                }
                byte => self.begun.push(*byte),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn field(last: &LastReport, field: Field) -> String {
        let mut text = Buffer::EMPTY;
        let is_empty = last.push(field, &mut text);
        assert_eq!(is_empty, text.is_empty());
        String::from_utf8(text.bytes().to_vec()).unwrap()
    }

    fn fields(last: &LastReport) -> [String; 4] {
        use Field::{Bridges, Reason, Routes, Rules};
        [Rules, Routes, Bridges, Reason].map(|it| field(last, it))
    }

    fn report(rules: u64, bridges: &str, reason: &str) -> String {
        let line = line(
            Restored { rules, routes: 7 },
            bridges.as_bytes(),
            reason.as_bytes(),
        );
        String::from_utf8(line).unwrap()
    }

    #[test]
    fn it_is_not_ready_before_the_guard_says_so() {
        assert_eq!(
            fields(&LastReport::default()),
            ["0", "0", "", NOT_INSTALLED]
        );
    }

    #[test]
    fn the_last_line_holds_however_the_bytes_are_split() {
        let lost = "the route to fd00::/56 is löst";
        let ready = report(1, "", "");
        let lines = [&ready, &report(u64::MAX, "cni0, döcker0", lost), &ready];
        let lines = lines.map(String::as_str).concat();
        for length in 1..lines.len() {
            let last = LastReport::default();
            let mut reader = LineReader::default();
            let mut seen = Vec::new();
            for piece in lines.as_bytes().chunks(length) {
                reader.read(piece, &last);
                seen.push(fields(&last));
            }
            assert_eq!(fields(&last), ["1", "7", "", ""], "pieces of {length}");
            let expected = [&u64::MAX.to_string(), "7", "cni0, döcker0", lost];
            assert!(length > 1 || seen.iter().any(|it| *it == expected));
        }
    }

    #[test]
    fn a_stop_changes_only_the_reason() {
        let last = LastReport::default();
        LineReader::default().read(report(3, "cni0", "").as_bytes(), &last);
        last.set_stopping();
        assert_eq!(fields(&last), ["3", "7", "cni0", STOPPING]);
    }

    #[test]
    fn a_report_is_one_line_of_limited_length() {
        assert_eq!(report(0, "a\tb", "one\ntwo\r\x1b"), "0\t7\tab\tonetwo\n");
        let longest = report(u64::MAX, &"ü".repeat(10_000), &"ö".repeat(10_000));
        assert!(longest.len() < 4096, "{} bytes", longest.len());
        let texts = longest.trim_end().split('\t').skip(2);
        assert!(texts.map(str::len).eq([LONGEST_TEXT; 2]));
    }
}

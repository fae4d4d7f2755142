//! What `/readyz` answers. Only the guard knows whether everything is in place, and it tells the server over
//! the control socket: a line for each change, which is the reason why the program is not ready, or empty once
//! it is. The end of the stream requests the stop.
//!
//! Nothing is sent back: a server that hangs reads no line, and must not hold up the guard.

use std::sync::Mutex;

use crate::lock::unpoisoned;

/// Why the program is not ready until the guard has said anything.
const NOT_INSTALLED: &str = "the rules are not installed yet";

/// Why the program is not ready any more, from the stop signal on.
pub const STOPPING: &str = "stopping";

/// Most characters of a reason.
const LONGEST_REASON: usize = 500;

/// The line that tells the server a reason; an empty one means that the program is ready.
pub fn line(reason: &str) -> String {
    let printable = reason.chars().filter(|it| !it.is_control());
    printable.take(LONGEST_REASON).chain(['\n']).collect()
}

/// Why the program is not ready.
#[derive(Debug)]
pub struct Readiness {
    /// Empty if it is ready.
    reason: Mutex<String>,
}

impl Default for Readiness {
    /// The state at the start: not ready.
    fn default() -> Readiness {
        Readiness {
            reason: Mutex::new(NOT_INSTALLED.to_owned()),
        }
    }
}

impl Readiness {
    /// Why the program is not ready; `None` if it is.
    pub fn reason(&self) -> Option<String> {
        let reason = unpoisoned(self.reason.lock()).clone();
        Some(reason).filter(|reason| !reason.is_empty())
    }

    /// Sets the reason; an empty one means that the program is ready.
    pub fn set(&self, reason: String) {
        *unpoisoned(self.reason.lock()) = reason;
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
    pub fn read(&mut self, bytes: &[u8], readiness: &Readiness) {
        for byte in bytes {
            match byte {
                b'\n' => {
                    readiness.set(String::from_utf8_lossy(&self.begun).into_owned());
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

    #[test]
    fn it_is_not_ready_before_the_guard_says_so() {
        assert_eq!(Readiness::default().reason().unwrap(), NOT_INSTALLED);
    }

    #[test]
    fn the_last_line_holds_however_the_bytes_are_split() {
        let lines = [line(""), line("the route to fd00::/56 is löst"), line("")].concat();
        for length in 1..lines.len() {
            let readiness = Readiness::default();
            let mut reader = LineReader::default();
            let mut reasons = Vec::new();
            for piece in lines.as_bytes().chunks(length) {
                reader.read(piece, &readiness);
                reasons.push(readiness.reason());
            }
            assert_eq!(readiness.reason(), None, "pieces of {length} bytes");
            let lost = Some("the route to fd00::/56 is löst".to_owned());
            assert!(length > 1 || reasons.contains(&lost), "{reasons:?}");
        }
    }

    #[test]
    fn a_reason_is_one_line_of_limited_length() {
        assert_eq!(line("one\ntwo\r\x1b"), "onetwo\n");
        let longest = line(&"ö".repeat(10_000));
        assert_eq!(longest.chars().count(), LONGEST_REASON + 1);
        assert!(longest.ends_with("ö\n"));
    }
}

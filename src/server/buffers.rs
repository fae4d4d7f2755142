//! The buffers of a worker.

use crate::http::head::MAX_HEAD;
use crate::http::response::Response;

/// Initial length of the input buffer, in bytes: most request heads are shorter.
const INITIAL_INPUT: usize = 1024;

/// Full length of the input buffer, in bytes: a read of a body gets at least half of it, whatever the
/// length of the head.
const FULL_INPUT: usize = 2 * MAX_HEAD;

/// The buffers of a worker, reused for its next connection. They take no memory before their first use.
#[derive(Debug, Default)]
pub struct Buffers {
    /// What has arrived of a request.
    pub input: Vec<u8>,
    /// The response, and then the log line.
    pub response: Response,
}

impl Buffers {
    /// Gives the input buffer its first memory.
    pub fn prepare(&mut self) {
        if self.input.is_empty() {
            self.input = vec![0; INITIAL_INPUT];
        }
    }
}

/// Gives the input buffer its full length.
pub fn enlarge(input: &mut Vec<u8>) {
    if input.len() < FULL_INPUT {
        let mut large = vec![0; FULL_INPUT];
        large[..input.len()].copy_from_slice(input);
        *input = large;
    }
}

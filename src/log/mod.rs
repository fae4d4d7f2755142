//! Log lines: `logger` makes them, `queue` gathers them and one thread writes them; `once` limits how
//! often one is written. `timestamp`, `text` and `buffer` are what lines, and responses, are made with.

pub mod buffer;
pub mod logger;
pub mod once;
pub mod queue;
pub mod text;
pub mod timestamp;
